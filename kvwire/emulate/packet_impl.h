/* A packet of IPv4 as the kernel hands it over a TUN device: maybe one of TCP's super-packets, which are not cut yet. */

#ifndef KVWIRE_PACKET_IMPL_H
#define KVWIRE_PACKET_IMPL_H

#include <linux/virtio_net.h>
#include <stddef.h>
#include <stdint.h>

#define VNET sizeof(struct virtio_net_hdr)  /* before each packet, both ways: how it is to be cut, which checksum is open */

typedef struct {
    uint8_t *ip;
    uint32_t ip_header, headers, segment, payload, count;   /* bytes; count: segments, 1 where nothing has to be cut */
} kv_packet_t;

/* Whether these bytes are a packet of IPv4; fills `p`. */
int kv_parse(uint8_t *buffer, size_t len, kv_packet_t *p);

/* Bytes of data, vnet header included, of a packet of segments `from` to `to` of that one. */
uint32_t kv_cut_bytes(const kv_packet_t *p, uint32_t from, uint32_t to);

/* Makes that packet, as TCP would have cut it itself. */
void kv_cut(uint8_t *out, const uint8_t *buffer, const kv_packet_t *p, uint32_t from, uint32_t to);

/* Sets the mark Congestion Experienced (RFC 3168). */
void kv_mark(uint8_t *data);

#endif
