/* Reading a packet's fields, and looking up what the policy says to them. */
#include "policy.h"

#include "policy_space.h"

enum { HOP_BY_HOP = 0, ICMP = 1, TCP = 6, UDP = 17, DCCP = 33, ROUTING = 43, FRAGMENT = 44, ICMPV6 = 58,
       DESTINATION = 60, SCTP = 132, UDP_LITE = 136 };

uint64_t policy_number(const struct vipsec_policy *policy) { return policy->number; }

static bool has_ports(int protocol) {
    return protocol == TCP || protocol == UDP || protocol == DCCP || protocol == SCTP || protocol == UDP_LITE;
}

static bool has_type(int protocol) { return protocol == ICMP || protocol == ICMPV6; }

bool policy_selector_valid(const struct vipsec_policy_selector *s) {
    const unsigned bits = s->family == 4 ? 32 : s->family == 6 ? 128 : 0;
    const bool numbers = s->local_low != 0 || s->local_high != 0xffff || s->remote_low != 0 || s->remote_high != 0xffff;
    return (s->family == 0 || bits != 0) && s->local_bits <= bits && s->remote_bits <= bits && s->protocol >= -1 &&
           s->protocol <= 255 && s->local_low <= s->local_high && s->remote_low <= s->remote_high &&
           (!numbers || has_ports(s->protocol) ||
            (has_type(s->protocol) && s->remote_low == 0 && s->remote_high == 0xffff));
}

/* What selectors look at. */
struct fields {
    const uint8_t *source, *target;
    uint16_t number[2]; /* source and destination port, or ICMP type * 256 + code and 0 */
    uint8_t protocol;
    bool ipv6;
    enum policy_hidden hidden;
};

/* Both numbers, unless `fragment` hides them or they are cut off. */
static void read_numbers(struct fields *f, const uint8_t *packet, uint32_t len, uint32_t at, bool fragment) {
    const bool ports = has_ports(f->protocol), type = has_type(f->protocol);
    f->number[0] = f->number[1] = 0;
    f->hidden = POLICY_SEEN;
    if (!ports && !type) {
        return;
    }
    if (fragment || at + (ports ? 4u : 2u) > len) {
        f->hidden = POLICY_NUMBERS_HIDDEN;
        return;
    }
    f->number[0] = load_be16(packet + at);
    if (ports) {
        f->number[1] = load_be16(packet + at + 2);
    }
}

static bool is_chained(uint8_t protocol) {
    return protocol == ROUTING || protocol == FRAGMENT || protocol == DESTINATION || protocol == HOP_BY_HOP;
}

static enum vipsec_policy_outcome read_ipv6(struct fields *f, const uint8_t *packet, uint32_t len) {
    uint8_t protocol = packet[6];
    const uint32_t payload = load_be16(packet + 4);
    uint32_t at = 40;
    bool fragment = false;
    if ((payload == 0 && protocol == HOP_BY_HOP) || at + payload > len) {
        return VIPSEC_POLICY_DROP_MALFORMED;
    }
    len = at + payload;
    f->source = packet + 8;
    f->target = packet + 24;
    f->ipv6 = true;
    while (is_chained(protocol)) {
        uint32_t length = 8;
        if ((protocol == HOP_BY_HOP && at != 40) || at + 8 > len) {
            return VIPSEC_POLICY_DROP_MALFORMED;
        }
        if (protocol == FRAGMENT) {
            const uint32_t word = load_be16(packet + at + 2);
            fragment = fragment || (word & 0xfff9) != 0;
            if ((word & 0xfff8) != 0) {
                f->protocol = packet[at];
                if (is_chained(f->protocol)) {
                    f->hidden = POLICY_PROTOCOL_HIDDEN;
                    f->number[0] = f->number[1] = 0;
                } else {
                    read_numbers(f, packet, len, at, true);
                }
                return VIPSEC_POLICY_BYPASS;
            }
        } else {
            length = (packet[at + 1] + 1u) * 8;
            if (at + length > len) {
                return VIPSEC_POLICY_DROP_MALFORMED;
            }
        }
        protocol = packet[at];
        at += length;
    }
    f->protocol = protocol;
    read_numbers(f, packet, len, at, fragment);
    return VIPSEC_POLICY_BYPASS;
}

static enum vipsec_policy_outcome read_ipv4(struct fields *f, const uint8_t *packet, uint32_t len) {
    const uint32_t header = (packet[0] & 15u) * 4, total = load_be16(packet + 2);
    if (header < 20 || header > total || total > len) {
        return VIPSEC_POLICY_DROP_MALFORMED;
    }
    f->source = packet + 12;
    f->target = packet + 16;
    f->ipv6 = false;
    f->protocol = packet[9];
    read_numbers(f, packet, total, header, (load_be16(packet + 6) & 0x3fff) != 0);
    return VIPSEC_POLICY_BYPASS;
}

/* BYPASS when the fields were read. */
static enum vipsec_policy_outcome read_fields(struct fields *f, const uint8_t *packet, uint32_t len) {
    const int version = len > 0 ? packet[0] >> 4 : 0;
    if (version != 4 && version != 6) {
        return VIPSEC_POLICY_NOT_IP;
    }
    if (len < (version == 4 ? 20 : 40)) {
        return VIPSEC_POLICY_DROP_MALFORMED;
    }
    return version == 4 ? read_ipv4(f, packet, len) : read_ipv6(f, packet, len);
}

/* The key of a packet seen from our side. Ports turn with the packet's direction, ICMP types do not. */
static void make_key(const struct fields *f, uint32_t sa_id, bool outbound, struct policy_key *key) {
    const uint8_t *local = outbound ? f->source : f->target, *remote = outbound ? f->target : f->source;
    const bool turned = !outbound && has_ports(f->protocol);
    const uint8_t protocol = f->hidden == POLICY_PROTOCOL_HIDDEN ? 0 : f->protocol;
    key->number[0] = f->number[turned];
    key->number[1] = f->number[!turned];
    policy_key_words(key, sa_id, protocol, f->ipv6, local, remote);
}

static const struct policy_entry *look_up(const struct policy_space *spaces, const struct fields *f,
                                          const struct policy_key *key) {
    return policy_space_find(&spaces[f->hidden * 2 + f->ipv6], key);
}

static void decide(const struct vipsec_policy *policy, const uint8_t *packet, uint32_t len, bool outbound,
                   struct vipsec_policy_verdict *verdict) {
    struct fields f;
    struct policy_key key;
    *verdict = (struct vipsec_policy_verdict){.rule = VIPSEC_POLICY_NO_RULE};
    verdict->outcome = (uint8_t)read_fields(&f, packet, len);
    if (verdict->outcome != VIPSEC_POLICY_BYPASS) {
        return;
    }
    make_key(&f, 0, outbound, &key);
    const struct policy_entry *entry = look_up(policy->rules, &f, &key);
    if (entry == NULL) {
        verdict->outcome = policy->default_outcome;
        return;
    }
    *verdict = (struct vipsec_policy_verdict){.sa_id = entry->sa_id, .rule = entry->rule, .outcome = entry->outcome};
}

void policy_outbound(const struct vipsec_policy *policy, const uint8_t *packet, uint32_t len,
                     struct vipsec_policy_verdict *verdict) {
    decide(policy, packet, len, true, verdict);
}

void policy_inbound_clear(const struct vipsec_policy *policy, const uint8_t *packet, uint32_t len,
                          struct vipsec_policy_verdict *verdict) {
    decide(policy, packet, len, false, verdict);
    if (verdict->outcome == VIPSEC_POLICY_PROTECT) {
        verdict->outcome = VIPSEC_POLICY_DROP_CLEARTEXT;
        verdict->sa_id = 0;
    }
}

void policy_inbound_opened(const struct vipsec_policy *policy, uint32_t sa_id, const uint8_t *packet, uint32_t len,
                           int outer_version, const uint8_t *outer_source, struct vipsec_policy_verdict *verdict) {
    const struct vipsec_policy_peer *peer = policy_peer(policy, sa_id);
    struct fields f;
    struct policy_key key;
    *verdict = (struct vipsec_policy_verdict){.rule = VIPSEC_POLICY_NO_RULE};
    if (peer != NULL &&
        (outer_version != peer->family || memcmp(outer_source, peer->address, peer->family == 4 ? 4 : 16) != 0)) {
        verdict->outcome = VIPSEC_POLICY_DROP_PEER;
        return;
    }
    verdict->outcome = (uint8_t)read_fields(&f, packet, len);
    if (verdict->outcome != VIPSEC_POLICY_BYPASS) {
        return;
    }
    make_key(&f, sa_id, false, &key);
    const struct policy_entry *entry = look_up(policy->opened, &f, &key);
    verdict->outcome = entry != NULL ? VIPSEC_POLICY_BYPASS : VIPSEC_POLICY_DROP_SELECTOR;
}

int vipsec_policy_decide(const struct vipsec_policy *policy, int direction, uint32_t sa_id, const uint8_t *packet,
                         uint32_t len, int outer_version, const uint8_t *outer_source,
                         struct vipsec_policy_verdict *verdict) {
    switch (direction) {
    case VIPSEC_POLICY_OUTBOUND: policy_outbound(policy, packet, len, verdict); break;
    case VIPSEC_POLICY_INBOUND_CLEAR: policy_inbound_clear(policy, packet, len, verdict); break;
    default: policy_inbound_opened(policy, sa_id, packet, len, outer_version, outer_source, verdict); break;
    }
    return verdict->outcome;
}
