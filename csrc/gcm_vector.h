/*
 * AES-GCM over vectors of BLOCKS 16-byte blocks: one text for 128, 256 and 512 bits. Not a header of its own: an
 * instruction set's .c file defines `vec`, the v_ functions, BLOCKS, CHUNK_VECTORS, GROUPS, ENGINE and ENGINE_ISA,
 * then includes it.
 *
 * Short packets go through `group`: several packets with keys of their own side by side, one per vector lane where
 * work is the same for all (AAD, lengths, reduction). Longer ones go through two streams, `cipher` and `hash`, that
 * advance by chunks in one loop, so AES and carry-less multiplication keep their units busy at the same time:
 *   seal: the hash follows one chunk behind the cipher, over the end of a packet into the next one;
 *   open: the hash verifies a packet while the cipher decrypts the one verified before it.
 *
 * Products of up to GCM_POWERS blocks are added up before one reduction. Multiplication is Karatsuba's: three
 * carry-less products instead of four, since these are the scarcer unit on every CPU measured.
 */

enum {
    VECTOR = BLOCKS * 16,
    CHUNK = CHUNK_VECTORS * VECTOR,
    CHUNK_BLOCKS = CHUNK_VECTORS * BLOCKS,
    FIRST_SEGMENT = 32, /* blocks; leaves a power for the AAD block in front */
};
static_assert(GCM_POWERS % CHUNK_BLOCKS == 0 && FIRST_SEGMENT % CHUNK_BLOCKS == 0, "segments end with chunks");
static_assert(CHUNK_VECTORS < 10, "one vector is hashed per AES round");

/* Sum of products, not reduced: low halves, high halves, (low + high) * (low + high). */
struct sum {
    vec low, cross, high;
};

INLINE void sum_add(struct sum *s, vec x, vec h) {
    s->low = v_xor(s->low, v_mul_low(x, h));
    s->high = v_xor(s->high, v_mul_high(x, h));
    s->cross = v_xor(s->cross, v_mul_low(v_xor(x, v_swap(x)), v_xor(h, v_swap(h))));
}

INLINE struct sum sum_zero(void) { return (struct sum){v_zero(), v_zero(), v_zero()}; }

/* The sum over all lanes, reduced. */
INLINE __m128i sum_reduce(const struct sum *s) {
    __m128i low = v_fold(s->low), high = v_fold(s->high);
    return reduce16(low, _mm_xor_si128(v_fold(s->cross), _mm_xor_si128(low, high)), high);
}

/* Each lane reduced by itself. */
INLINE vec sum_reduce_lanes(const struct sum *s) {
    const vec poly = v_all(GCM_POLY);
    vec middle = v_xor3(s->cross, s->low, s->high);
    middle = v_xor3(middle, v_swap(s->low), v_mul_cross(poly, s->low));
    return v_xor3(s->high, v_swap(middle), v_mul_cross(poly, middle));
}

INLINE vec round_key(const struct vipsec_gcm_key *key, size_t round) { return v_all(load16(key->round_key[round])); }

/* Every key has 10 rounds at least; the others are a branch that goes the same way for a key. */
enum { LEAST_ROUNDS = 10 };

/* ---- long packets ------------------------------------------------------------------------- */

struct cipher {
    const struct vipsec_gcm_key *key;
    const uint8_t *in;
    uint8_t *out;
    size_t left; /* bytes */
    vec counter; /* next counter blocks, reversed, so that the counter is a little-endian word */
};

struct hash {
    struct vipsec_gcm_op *op; /* NULL: no packet */
    const uint8_t *data;
    size_t left; /* bytes */
    const uint8_t *power;
    size_t room;     /* blocks until the next reduction; the block of lengths counts as one */
    size_t after;    /* blocks beyond that */
    __m128i carry;   /* reduced value, to be added to the next block */
    __m128i mask;    /* encrypted first counter block, hides the tag */
    struct sum sum;
};

INLINE void cipher_begin(struct cipher *c, const struct vipsec_gcm_op *op) {
    c->key = op->key;
    c->in = op->in;
    c->out = op->out;
    c->left = op->len;
    c->counter = v_add32(v_all(reverse16(first_counter(op))), v_counters());
}

INLINE void hash_begin(struct hash *h, struct vipsec_gcm_op *op, const uint8_t *data) {
    const struct vipsec_gcm_key *key = op->key;
    const size_t blocks = ((size_t)op->len + 15) / 16 + 1;
    h->op = op;
    h->data = data;
    h->left = op->len;
    h->room = blocks < GCM_POWERS ? blocks : FIRST_SEGMENT;
    h->after = blocks - h->room;
    h->power = power(key, h->room);
    h->carry = _mm_setzero_si128();
    h->sum = sum_zero();
    const __m128i aad = aad_block(op), weight = load16(h->power - 16);
#if BLOCKS > 1
    /* With a single reduction both outer blocks take one multiplication. */
    __m128i x[BLOCKS] = {aad, h->after == 0 ? length_block(op) : _mm_setzero_si128()};
    __m128i w[BLOCKS] = {weight, load16(power(key, 1))};
    sum_add(&h->sum, v_pack(x), v_pack(w));
#else
    sum_add(&h->sum, aad, weight);
#endif
    __m128i mask = _mm_xor_si128(first_counter(op), load16(key->round_key[0]));
    UNROLL for (size_t r = 1; r < LEAST_ROUNDS; r++) { mask = _mm_aesenc_si128(mask, load16(key->round_key[r])); }
    for (size_t r = LEAST_ROUNDS; r < key->rounds; r++) {
        mask = _mm_aesenc_si128(mask, load16(key->round_key[r]));
    }
    h->mask = _mm_aesenclast_si128(mask, load16(key->round_key[key->rounds]));
}

/* Reduces when the powers are used up. */
INLINE void hash_turn(struct hash *h) {
    if (h->room == 0) {
        h->carry = sum_reduce(&h->sum);
        h->sum = sum_zero();
        h->room = h->after < GCM_POWERS ? h->after : GCM_POWERS;
        h->after -= h->room;
        h->power = power(h->op->key, h->room);
    }
}

/* One chunk of the cipher and one of the hash, each optional; the two touch different bytes. */
INLINE void chunk(struct cipher *c, struct hash *h) {
    vec s[CHUNK_VECTORS];
    if (c != NULL) {
        const vec key = round_key(c->key, 0), step = v_all(_mm_set_epi32(0, 0, 0, BLOCKS));
        UNROLL for (int v = 0; v < CHUNK_VECTORS; v++) {
            s[v] = v_xor(v_reverse(c->counter), key);
            c->counter = v_add32(c->counter, step);
        }
    }
    if (h != NULL) {
        hash_turn(h);
    }
    UNROLL for (size_t r = 1; r < LEAST_ROUNDS; r++) {
        if (c != NULL) {
            const vec key = round_key(c->key, r);
            UNROLL for (int v = 0; v < CHUNK_VECTORS; v++) { s[v] = v_aes(s[v], key); }
        }
        if (h != NULL && r <= CHUNK_VECTORS) {
            vec x = v_reverse(v_load(h->data + (r - 1) * VECTOR));
            if (r == 1) {
                x = v_xor(x, v_only(h->carry));
                h->carry = _mm_setzero_si128();
            }
            sum_add(&h->sum, x, v_load(h->power + (r - 1) * VECTOR));
        }
    }
    if (c != NULL) {
        for (size_t r = LEAST_ROUNDS; r < c->key->rounds; r++) {
            const vec key = round_key(c->key, r);
            UNROLL for (int v = 0; v < CHUNK_VECTORS; v++) { s[v] = v_aes(s[v], key); }
        }
        const vec key = round_key(c->key, c->key->rounds);
        UNROLL for (int v = 0; v < CHUNK_VECTORS; v++) {
            v_store(c->out + v * VECTOR, v_aes_last(s[v], v_xor(key, v_load(c->in + v * VECTOR))));
        }
        c->in += CHUNK;
        c->out += CHUNK;
        c->left -= CHUNK;
    }
    if (h != NULL) {
        h->data += CHUNK;
        h->power += CHUNK;
        h->left -= CHUNK;
        h->room -= CHUNK_BLOCKS;
    }
}

/* The last `vectors` vectors, the last of them full or not. */
INLINE void cipher_last(struct cipher *c, const int vectors) {
    vec s[CHUNK_VECTORS];
    vec key = round_key(c->key, 0);
    const vec step = v_all(_mm_set_epi32(0, 0, 0, BLOCKS));
    UNROLL for (int v = 0; v < vectors; v++) {
        s[v] = v_xor(v_reverse(c->counter), key);
        c->counter = v_add32(c->counter, step);
    }
    UNROLL for (size_t r = 1; r < LEAST_ROUNDS; r++) {
        key = round_key(c->key, r);
        UNROLL for (int v = 0; v < vectors; v++) { s[v] = v_aes(s[v], key); }
    }
    for (size_t r = LEAST_ROUNDS; r < c->key->rounds; r++) {
        key = round_key(c->key, r);
        UNROLL for (int v = 0; v < vectors; v++) { s[v] = v_aes(s[v], key); }
    }
    key = round_key(c->key, c->key->rounds);
    UNROLL for (int v = 0; v + 1 < vectors; v++) {
        v_store(c->out + v * VECTOR, v_aes_last(s[v], v_xor(key, v_load(c->in + v * VECTOR))));
    }
    const size_t before = (size_t)(vectors - 1) * VECTOR, rest = c->left - before;
    const vec x = v_load_part(c->in + before, rest);
    v_store_part(c->out + before, v_aes_last(s[vectors - 1], v_xor(key, x)), rest);
}

/*
 * 1 to CHUNK bytes. Not inlined, so that there is one copy of all lengths, and called with plain values: a structure
 * would go through memory, in other widths than it was written, which stalls.
 */
static __attribute__((noinline)) void cipher_tail(const struct vipsec_gcm_key *key, const uint8_t *in, uint8_t *out,
                                                  size_t left, vec counter) {
    struct cipher stream = {key, in, out, left, counter}, *const c = &stream;
    switch ((c->left + VECTOR - 1) / VECTOR) {
    case 1: cipher_last(c, 1); break;
    case 2: cipher_last(c, 2); break;
    case 3: cipher_last(c, 3); break;
#if CHUNK_VECTORS > 4
    case 4: cipher_last(c, 4); break;
    case 5: cipher_last(c, 5); break;
    case 6: cipher_last(c, 6); break;
    case 7: cipher_last(c, 7); break;
#endif
    default: cipher_last(c, CHUNK_VECTORS); break;
    }
}

/* The rest of the packet and the block of lengths; the tag. */
INLINE __m128i hash_end(struct hash *h) {
    while (h->left >= CHUNK) {
        chunk(NULL, h);
    }
    hash_turn(h);
    h->room -= (h->left + 15) / 16;
    /* hash_begin took the block of lengths when everything fits into one segment. */
    const bool lengths_left = BLOCKS == 1 || ((size_t)h->op->len + 15) / 16 + 1 >= GCM_POWERS;
    while (h->left > 0) {
        const size_t n = h->left < VECTOR ? h->left : VECTOR;
        sum_add(&h->sum, v_xor(v_reverse(v_load_part(h->data, n)), v_only(h->carry)), v_load(h->power));
        h->carry = _mm_setzero_si128();
        h->data += n;
        h->power += VECTOR;
        h->left -= n;
    }
    if (lengths_left) {
        hash_turn(h);
        __m128i x = _mm_xor_si128(length_block(h->op), h->carry);
        sum_add(&h->sum, v_only(x), v_only(load16(power(h->op->key, 1))));
    }
    return _mm_xor_si128(reverse16(sum_reduce(&h->sum)), h->mask);
}

/* The hash of a packet runs one chunk behind its cipher, and ends while the next packet begins. */
static __attribute__((noinline)) void seal_long(struct vipsec_gcm_op *const *ops, size_t count) {
    struct hash h = {.op = NULL};
    struct cipher c = {.left = 0};
    for (size_t i = 0;; i++) {
        if (i < count) {
            cipher_begin(&c, ops[i]);
            if (c.left >= CHUNK) {
                if (h.op != NULL && h.left >= CHUNK) {
                    chunk(&c, &h);
                } else {
                    chunk(&c, NULL);
                }
            } else if (c.left > 0) {
                cipher_tail(c.key, c.in, c.out, c.left, c.counter);
                c.left = 0;
            }
        }
        if (h.op != NULL) {
            write_tag(h.op, hash_end(&h));
        }
        if (i == count) {
            return;
        }
        hash_begin(&h, ops[i], ops[i]->out);
        while (c.left >= CHUNK) {
            chunk(&c, &h);
        }
        if (c.left > 0) {
            cipher_tail(c.key, c.in, c.out, c.left, c.counter);
        }
    }
}

/* While the hash verifies a packet the cipher decrypts the one before it, if that one was authentic. */
static __attribute__((noinline)) void open_long(struct vipsec_gcm_op *const *ops, size_t count) {
    struct cipher c = {.left = 0};
    for (size_t i = 0;; i++) {
        struct hash h = {.left = 0};
        if (i < count) {
            hash_begin(&h, ops[i], ops[i]->in);
        }
        while (c.left >= CHUNK && h.left >= CHUNK) {
            chunk(&c, &h);
        }
        while (c.left >= CHUNK) {
            chunk(&c, NULL);
        }
        if (c.left > 0) {
            cipher_tail(c.key, c.in, c.out, c.left, c.counter);
        }
        if (i == count) {
            return;
        }
        c.left = 0;
        if (tag_matches(ops[i], hash_end(&h))) {
            cipher_begin(&c, ops[i]);
        } else {
            ops[i]->result = VIPSEC_GCM_BAD_TAG;
        }
    }
}

/* ---- short packets ------------------------------------------------------------------------ */

/* `count` packets (a multiple of BLOCKS) of at most `vectors` vectors each, with keys of one size. */
INLINE void group(struct vipsec_gcm_op *const *ops, const int count, const int vectors, const bool opening) {
    enum { MOST = 4 };
    const size_t most = (size_t)vectors * BLOCKS + 2; /* blocks of data, AAD and lengths */
    vec s[MOST][MOST];
    __m128i mask[MOST], aad[MOST], aad_weight[MOST], lengths[MOST], length_weight[MOST];
    struct sum sums[MOST], lanes;
    /* At most 17 counters are used: the big-endian word never carries out of its last byte. */
    const vec first = v_reverse(v_counters()), step = v_all(_mm_set_epi32(BLOCKS << 24, 0, 0, 0));
    UNROLL for (int i = 0; i < count; i++) {
        const vec key = round_key(ops[i]->key, 0);
        const __m128i zero = first_counter(ops[i]);
        vec counter = v_add32(v_all(zero), first);
        mask[i] = _mm_xor_si128(zero, v_first(key));
        UNROLL for (int v = 0; v < vectors; v++) {
            s[i][v] = v_xor(counter, key);
            counter = v_add32(counter, step);
        }
    }
    const size_t rounds = ops[0]->key->rounds;
    UNROLL for (size_t r = 1; r < LEAST_ROUNDS; r++) {
        UNROLL for (int i = 0; i < count; i++) {
            const vec key = round_key(ops[i]->key, r);
            UNROLL for (int v = 0; v < vectors; v++) { s[i][v] = v_aes(s[i][v], key); }
            mask[i] = _mm_aesenc_si128(mask[i], v_first(key));
        }
    }
    for (size_t r = LEAST_ROUNDS; r < rounds; r++) {
        UNROLL for (int i = 0; i < count; i++) {
            const vec key = round_key(ops[i]->key, r);
            UNROLL for (int v = 0; v < vectors; v++) { s[i][v] = v_aes(s[i][v], key); }
            mask[i] = _mm_aesenc_si128(mask[i], v_first(key));
        }
    }
    UNROLL for (int i = 0; i < count; i++) {
        const struct vipsec_gcm_op *op = ops[i];
        const vec key = round_key(op->key, rounds);
        mask[i] = _mm_aesenclast_si128(mask[i], v_first(key));
        const size_t len = op->len, blocks = (len + 15) / 16;
        aad[i] = aad_block(op);
        aad_weight[i] = load16(power_up_to(most, op->key, blocks + 2));
        lengths[i] = length_block(op);
        length_weight[i] = load16(power_up_to(most, op->key, 1));
        sums[i] = sum_zero();
        UNROLL for (int v = 0; v < vectors; v++) {
            const size_t done = (size_t)v * VECTOR, n = len <= done ? 0 : len - done < VECTOR ? len - done : VECTOR;
            vec x = v_load_part(op->in + done, n);
            s[i][v] = v_aes_last(s[i][v], v_xor(key, x));
            if (!opening) {
                v_store_part(op->out + done, s[i][v], n);
                x = v_keep(s[i][v], n);
            }
            /* A vector without data is zero: any weight will do. */
            const size_t weight = blocks + 1 > (size_t)v * BLOCKS ? blocks + 1 - (size_t)v * BLOCKS : 1;
            sum_add(&sums[i], v_reverse(x), v_load(power_up_to(most, op->key, weight)));
        }
    }
    UNROLL for (int i = 0; i < count; i += BLOCKS) {
        __m128i tag[BLOCKS];
        vec parts[3][BLOCKS];
        UNROLL for (int j = 0; j < BLOCKS; j++) {
            parts[0][j] = sums[i + j].low;
            parts[1][j] = sums[i + j].cross;
            parts[2][j] = sums[i + j].high;
        }
        lanes = (struct sum){v_fold_lanes(parts[0]), v_fold_lanes(parts[1]), v_fold_lanes(parts[2])};
        sum_add(&lanes, v_pack(aad + i), v_pack(aad_weight + i));
        sum_add(&lanes, v_pack(lengths + i), v_pack(length_weight + i));
        v_unpack(tag, v_xor(v_reverse(sum_reduce_lanes(&lanes)), v_pack(mask + i)));
        UNROLL for (int j = 0; j < BLOCKS; j++) {
            struct vipsec_gcm_op *op = ops[i + j];
            if (!opening) {
                write_tag(op, tag[j]);
            } else if (tag_matches(op, tag[j])) {
                UNROLL for (int v = 0; v < vectors; v++) {
                    const size_t done = (size_t)v * VECTOR, len = op->len;
                    const size_t n = len <= done ? 0 : len - done < VECTOR ? len - done : VECTOR;
                    v_store_part(op->out + done, s[i + j][v], n);
                }
            } else {
                op->result = VIPSEC_GCM_BAD_TAG;
            }
        }
    }
}

/* ---- batches ------------------------------------------------------------------------------ */

typedef void group_function(struct vipsec_gcm_op *const *ops);

#define GROUP(limit, count, vectors)                                                                                   \
    static_assert((limit) == (vectors)*VECTOR && (count) % BLOCKS == 0 && (count) <= 4, "group of " #limit);           \
    static_assert(((limit) <= GCM_SHORT) == ((vectors)*BLOCKS + 2 <= GCM_LOW_POWERS), "powers of " #limit);            \
    static void seal_##limit(struct vipsec_gcm_op *const *ops) { group(ops, count, vectors, false); }                  \
    static void open_##limit(struct vipsec_gcm_op *const *ops) { group(ops, count, vectors, true); }
GROUPS(GROUP)
#undef GROUP

static const struct group_kind {
    size_t limit, count; /* payload bytes at most; packets side by side */
    group_function *seal, *open;
} kinds[] = {
#define GROUP(limit, count, vectors) {limit, count, seal_##limit, open_##limit},
    GROUPS(GROUP)
#undef GROUP
};
enum { KINDS = sizeof kinds / sizeof kinds[0], KEY_SIZES = 3 };

/* Packets by which round keys are fetched ahead. */
enum { FETCH_AHEAD = 8 };

/* Packets that wait for company of their kind and key size. */
struct bin {
    struct vipsec_gcm_op *ops[4];
    size_t used;
};

/* Long packets under way; so many that the first and the last one, which have no neighbour, cost little. */
struct queue {
    struct vipsec_gcm_op *ops[32];
    size_t used;
};

INLINE void take_long(struct queue *queue, struct vipsec_gcm_op *op, const bool opening) {
    enum { CAPACITY = sizeof queue->ops / sizeof queue->ops[0] };
    queue->ops[queue->used++] = op;
    if (queue->used == CAPACITY) {
        (opening ? open_long : seal_long)(queue->ops, CAPACITY);
        queue->used = 0;
    }
}

/* Runs what is still in a bin: filled up with empty packets, or alone when that is cheaper. */
INLINE void flush_bin(struct queue *queue, struct bin *bin, const struct group_kind *kind, const bool opening) {
    if (bin->used == 1) {
        take_long(queue, bin->ops[0], opening);
    } else if (bin->used > 1) {
        uint8_t tag[16] = {0}, nothing[1] = {0};
        struct vipsec_gcm_op filler = {
            .key = bin->ops[0]->key, .in = nothing, .out = nothing, .tag = tag, .tag_len = sizeof tag};
        while (bin->used < kind->count) {
            bin->ops[bin->used++] = &filler;
        }
        (opening ? kind->open : kind->seal)(bin->ops);
    }
}

INLINE size_t run(struct vipsec_gcm_op *ops, size_t count, const bool opening, const bool far) {
    struct bin bins[KINDS][KEY_SIZES];
    struct queue queue;
    queue.used = 0;
    for (size_t kind = 0; kind < KINDS; kind++) {
        for (size_t size = 0; size < KEY_SIZES; size++) {
            bins[kind][size].used = 0;
        }
    }
    for (size_t i = 0; far && i < FETCH_AHEAD && i < count; i++) {
        gcm_fetch_round_keys(ops[i].key);
    }
    for (size_t i = 0; i < count; i++) {
        struct vipsec_gcm_op *op = &ops[i];
        if (far && i + FETCH_AHEAD < count) {
            gcm_fetch_round_keys(ops[i + FETCH_AHEAD].key);
        }
        if (!gcm_op_valid(op, ENGINE_ISA)) {
            op->result = VIPSEC_GCM_REFUSED;
            continue;
        }
        op->result = VIPSEC_GCM_OK;
        size_t kind = 0;
        while (kind < KINDS && op->len > kinds[kind].limit) {
            kind++;
        }
        if (kind == KINDS) {
            take_long(&queue, op, opening);
            continue;
        }
        struct bin *bin = &bins[kind][(op->key->rounds - 10) / 2];
        bin->ops[bin->used++] = op;
        if (bin->used == kinds[kind].count) {
            (opening ? kinds[kind].open : kinds[kind].seal)(bin->ops);
            bin->used = 0;
        }
    }
    for (size_t kind = 0; kind < KINDS; kind++) {
        for (size_t size = 0; size < KEY_SIZES; size++) {
            flush_bin(&queue, &bins[kind][size], &kinds[kind], opening);
        }
    }
    (opening ? open_long : seal_long)(queue.ops, queue.used);
    size_t failed = 0;
    for (size_t i = 0; i < count; i++) {
        failed += ops[i].result != VIPSEC_GCM_OK;
    }
    return failed;
}

static size_t seal_batch(struct vipsec_gcm_op *ops, size_t count, bool far) {
    return far ? run(ops, count, false, true) : run(ops, count, false, false);
}
static size_t open_batch(struct vipsec_gcm_op *ops, size_t count, bool far) {
    return far ? run(ops, count, true, true) : run(ops, count, true, false);
}

static bool make_key(struct vipsec_gcm_key *key, const uint8_t *bytes, size_t size) {
    gcm_key_expand_x86(key, bytes, size);
    return true;
}

const struct vipsec_gcm *ENGINE(void) {
    static const struct vipsec_gcm engine = {ENGINE_ISA, make_key, NULL, seal_batch, open_batch};
    return &engine;
}
