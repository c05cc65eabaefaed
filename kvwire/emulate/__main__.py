"""python -m kvwire.emulate COMMAND...: runs a command where it may make namespaces, if need be in a user namespace."""

import os
import sys

from kvwire.emulate.namespaces import in_user_namespace, may_make_namespaces


def main() -> None:
    command = sys.argv[1:]
    if not command:
        sys.exit(__doc__)
    if may_make_namespaces():
        in_user_namespace(command)
    os.execvp(command[0], command)


if __name__ == "__main__":
    main()
