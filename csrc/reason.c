/* Names of the verdicts. */
#include "vipsec.h"

static const char *const names[VIPSEC_REASON_COUNT] = {
    [VIPSEC_REASON_NONE] = "none",
    [VIPSEC_REASON_UNKNOWN_SA] = "unknown_sa",
    [VIPSEC_REASON_WRONG_DIRECTION] = "wrong_direction",
    [VIPSEC_REASON_HARD_LIFETIME] = "hard_lifetime",
    [VIPSEC_REASON_SEQUENCE_OVERFLOW] = "sequence_overflow",
    [VIPSEC_REASON_REPLAY] = "replay",
    [VIPSEC_REASON_BAD_ICV] = "bad_icv",
    [VIPSEC_REASON_BAD_PADDING] = "bad_padding",
    [VIPSEC_REASON_BAD_NEXT_HEADER] = "bad_next_header",
    [VIPSEC_REASON_BAD_INNER] = "bad_inner",
    [VIPSEC_REASON_DUMMY] = "dummy",
    [VIPSEC_REASON_CONGESTION] = "congestion",
    [VIPSEC_REASON_NOT_IPSEC] = "not_ipsec",
    [VIPSEC_REASON_FRAGMENT] = "fragment",
    [VIPSEC_REASON_MALFORMED] = "malformed",
    [VIPSEC_REASON_NOT_IP] = "not_ip",
    [VIPSEC_REASON_TTL_EXPIRED] = "ttl_expired",
    [VIPSEC_REASON_TOO_BIG] = "too_big",
    [VIPSEC_REASON_BAD_HEADER] = "bad_header",
    [VIPSEC_REASON_BAD_CHECKSUM_REQUEST] = "bad_checksum_request",
    [VIPSEC_REASON_BAD_GSO] = "bad_gso",
    [VIPSEC_REASON_FILTERED] = "filtered",
    [VIPSEC_REASON_RULE_DROP] = "rule_drop",
    [VIPSEC_REASON_NO_BUFFER] = "no_buffer",
    [VIPSEC_REASON_QUEUE_DISABLED] = "queue_disabled",
    [VIPSEC_REASON_OVERLOAD] = "overload",
    [VIPSEC_REASON_HELD] = "held",
};

const char *vipsec_reason_name(int reason) {
    return reason >= 0 && reason < VIPSEC_REASON_COUNT ? names[reason] : NULL;
}
