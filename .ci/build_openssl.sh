#!/usr/bin/env bash
# Builds the libcrypto that goes into a wheel, beside the extension modules, where kvwire looks for it first.
#
#   .ci/build_openssl.sh [FOLDER]     FOLDER: kvwire/_ext/lib of this checkout unless given
#
# OPENSSL_SOURCE names the release's tarball, or a folder it was unpacked into; without it, it is downloaded.
# Needs curl, perl with its core modules, make, and a compiler with an assembler that knows AVX-512.
set -euo pipefail

# A release of the long-term branch 3.5. The checksum is the one published beside the tarball, and Debian's for the
# same file.
version=3.5.7
sha256=a8c0d28a529ca480f9f36cf5792e2cd21984552a3c8e4aa11a24aa31aeac98e8
url=https://github.com/openssl/openssl/releases/download/openssl-$version/openssl-$version.tar.gz

mkdir -p "${1:-$(dirname "${BASH_SOURCE[0]}")/../kvwire/_ext/lib}"
destination=$(cd "${1:-$(dirname "${BASH_SOURCE[0]}")/../kvwire/_ext/lib}" && pwd)
source=${OPENSSL_SOURCE:-}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

if [ -z "$source" ]; then
    source=$work/openssl.tar.gz
    curl --fail --silent --show-error --location --retry 3 --proto '=https' --output "$source" "$url"
fi
if [ -f "$source" ]; then
    echo "$sha256  $source" | sha256sum --check --quiet
    tar --extract --gzip --no-same-owner --file "$source" --directory "$work"
    source=$work/openssl-$version
fi
source=$(cd "$source" && pwd)
export SOURCE_DATE_EPOCH=${SOURCE_DATE_EPOCH:-$(stat --format=%Y "$source/VERSION.dat")}

options=(
    shared no-apps no-tests no-docs
    # It is opened inside other people's processes: no configuration file, provider or engine of the host's own
    # OpenSSL may be loaded into it, and no handler of its own runs when the process ends.
    --prefix=/nonexistent --openssldir=/nonexistent --libdir=lib
    no-autoload-config no-module no-legacy no-engine no-dso no-atexit
    # The same library wherever, and with SOURCE_DATE_EPOCH whenever, it is built.
    no-filenames
    # Protocols and ciphers that kvwire has no use for.
    no-cmp no-cms no-comp no-ct no-dgram no-http no-ocsp no-psk no-quic no-rfc3779 no-srp no-srtp no-ts no-ui-console
    no-aria no-bf no-camellia no-cast no-des no-gost no-idea no-md4 no-mdc2 no-rc2 no-rc4 no-rmd160 no-seed no-siv
    no-sm2 no-sm3 no-sm4 no-whirlpool no-dsa no-ml-dsa no-ml-kem no-slh-dsa
)

mkdir "$work/build"
cd "$work/build"
perl "$source/Configure" "${options[@]}" >configure.log 2>&1 || { cat configure.log; exit 1; }
{ make build_generated && make --jobs="${JOBS:-$(nproc)}" libcrypto.so; } >make.log 2>&1 || { tail -50 make.log; exit 1; }

# An old assembler drops the fastest code without a word.
case $(uname -m) in
    x86_64) fast=ossl_aes_gcm_encrypt_avx512 ;;
    aarch64) fast=unroll8_eor3_aes_gcm_enc_256_kernel ;;
    *) echo "wheels are built for x86_64 and aarch64, not for $(uname -m)" >&2; exit 1 ;;
esac
nm libcrypto.so.3 >symbols
grep --quiet " $fast\$" symbols || { echo "libcrypto.so.3 has no $fast: too old an assembler" >&2; exit 1; }

strip --strip-unneeded libcrypto.so.3
install -m 755 libcrypto.so.3 "$destination/libcrypto.so.3"
install -m 644 "$source/LICENSE.txt" "$destination/LICENSE.OpenSSL.txt"
echo "$destination/libcrypto.so.3: OpenSSL $version, $(stat --format=%s libcrypto.so.3) bytes"
