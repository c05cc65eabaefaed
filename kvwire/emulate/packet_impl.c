#include "packet_impl.h"

#include <arpa/inet.h>
#include <netinet/in.h>
#include <string.h>

enum { TCP_CWR = 0x80, TCP_PSH = 0x08, TCP_FIN = 0x01 };

static uint32_t sum16(const uint8_t *bytes, uint32_t len)
{
    uint32_t sum = 0;
    for (uint32_t i = 0; i + 1 < len; i += 2)
        sum += (uint32_t)bytes[i] << 8 | bytes[i + 1];
    while (sum >> 16)
        sum = (sum & 0xffff) + (sum >> 16);
    return sum;
}

static void put16(uint8_t *at, uint32_t value)
{
    at[0] = (uint8_t)(value >> 8);
    at[1] = (uint8_t)value;
}

static void sign(uint8_t *ip, uint32_t header)
{
    put16(ip + 10, 0);
    put16(ip + 10, ~sum16(ip, header));
}

int kv_parse(uint8_t *buffer, size_t len, kv_packet_t *p)
{
    const struct virtio_net_hdr *vnet = (const struct virtio_net_hdr *)buffer;
    if (len < VNET + 20 || buffer[VNET] >> 4 != 4)
        return 0;
    p->ip = buffer + VNET;
    p->ip_header = (p->ip[0] & 15) * 4u;
    p->headers = p->ip_header;
    if ((vnet->gso_type & ~VIRTIO_NET_HDR_GSO_ECN) == VIRTIO_NET_HDR_GSO_TCPV4 && len >= VNET + p->ip_header + 20) {
        p->headers += (p->ip[p->ip_header + 12] >> 4) * 4u;
        p->segment = vnet->gso_size;
    } else {
        p->segment = 0;
    }
    if (len < VNET + p->headers)
        return 0;
    p->payload = (uint32_t)(len - VNET - p->headers);
    p->count = p->segment && p->payload > p->segment ? (p->payload + p->segment - 1) / p->segment : 1;
    return 1;
}

static uint32_t start_of(const kv_packet_t *p, uint32_t segment)
{
    return segment == p->count ? p->payload : segment * p->segment;
}

uint32_t kv_cut_bytes(const kv_packet_t *p, uint32_t from, uint32_t to)
{
    return (uint32_t)VNET + p->headers + start_of(p, to) - start_of(p, from);
}

void kv_cut(uint8_t *out, const uint8_t *buffer, const kv_packet_t *p, uint32_t from, uint32_t to)
{
    uint32_t start = start_of(p, from), payload = start_of(p, to) - start;
    memcpy(out, buffer, VNET + p->headers);
    memcpy(out + VNET + p->headers, buffer + VNET + p->headers + start, payload);
    if (to - from == p->count)
        return;
    struct virtio_net_hdr *vnet = (struct virtio_net_hdr *)out;
    uint8_t *ip = out + VNET, *tcp = ip + p->ip_header;
    if (to - from == 1)
        vnet->gso_type = VIRTIO_NET_HDR_GSO_NONE, vnet->gso_size = 0;
    uint32_t length = p->headers - p->ip_header + payload, sequence;
    put16(ip + 2, p->ip_header + length);
    put16(ip + 4, ((uint32_t)ip[4] << 8 | ip[5]) + from);
    memcpy(&sequence, tcp + 4, 4);
    sequence = htonl(ntohl(sequence) + start);
    memcpy(tcp + 4, &sequence, 4);
    if (to < p->count)
        tcp[13] &= (uint8_t)~(TCP_PSH | TCP_FIN);
    if (from)
        tcp[13] &= (uint8_t)~TCP_CWR;
    uint8_t pseudo[12];     /* the kernel completes the checksum, and starts from this one's */
    memcpy(pseudo, ip + 12, 8);
    put16(pseudo + 8, IPPROTO_TCP);
    put16(pseudo + 10, length);
    put16(tcp + 16, sum16(pseudo, sizeof(pseudo)));
    vnet->flags = VIRTIO_NET_HDR_F_NEEDS_CSUM;
    sign(ip, p->ip_header);
}

void kv_mark(uint8_t *data)
{
    uint8_t *ip = data + VNET;
    ip[1] |= 3;
    sign(ip, (ip[0] & 15) * 4u);
}
