/*
 * Packed declarations of the structs in spec/layouts.json, written by hand from the types that the
 * specification (tag v1.4-cs01) and, for names with rfc_, the slides of January 2025 give.
 * test_layouts_c.py prints offsetof and sizeof of these and compares; nothing here is generated.
 */
#ifndef VIRTIO_IPSEC_TEST_LAYOUTS_H
#define VIRTIO_IPSEC_TEST_LAYOUTS_H

#include <stddef.h>
#include <stdint.h>

typedef uint8_t u8;
typedef uint16_t le16;
typedef uint32_t le32;
typedef uint64_t le64;

#define PACKED __attribute__((packed))

/* --- administration commands --- */

struct virtio_admin_cmd_readable {
        le16 opcode;
        le16 group_type;
        u8 reserved1[12];
        le64 group_member_id;
        le64 command_specific_data[];
} PACKED;

struct virtio_admin_cmd_writable {
        le16 status;
        le16 status_qualifier;
        u8 reserved2[4];
        u8 command_specific_result[];
} PACKED;

/* A lone flexible array is not C: the leading member has no size. */
struct virtio_admin_cmd_list {
        u8 begin[0];
        le64 device_admin_cmd_opcodes[];
} PACKED;

struct virtio_admin_cmd_query_cap_id_result {
        u8 begin[0];
        le64 supported_caps[];
} PACKED;

struct virtio_admin_cmd_cap_get_data {
        le16 id;
        u8 reserved[6];
} PACKED;

struct virtio_admin_cmd_cap_get_result {
        u8 begin[0];
        u8 cap_specific_data[];
} PACKED;

struct virtio_admin_cmd_cap_set_data {
        le16 id;
        u8 reserved[6];
        u8 cap_specific_data[];
} PACKED;

struct virtio_dev_parts_cap {
        u8 get_parts_resource_objects_limit;
        u8 set_parts_resource_objects_limit;
} PACKED;

struct virtio_admin_cmd_resource_obj_cmd_hdr {
        le16 type;
        u8 reserved[2];
        le32 id;
} PACKED;

struct virtio_admin_cmd_resource_obj_create_data {
        struct virtio_admin_cmd_resource_obj_cmd_hdr hdr;
        le64 flags;
        u8 resource_obj_specific_data[];
} PACKED;

struct virtio_admin_cmd_resource_modify_data {
        struct virtio_admin_cmd_resource_obj_cmd_hdr hdr;
        le64 flags;
        u8 resource_obj_specific_data[];
} PACKED;

struct virtio_admin_cmd_resource_obj_query_data {
        struct virtio_admin_cmd_resource_obj_cmd_hdr hdr;
        le64 flags;
} PACKED;

struct virtio_admin_cmd_resource_obj_query_result {
        u8 begin[0];
        u8 resource_obj_specific_result[];
} PACKED;

struct virtio_dev_part_hdr {
        le16 part_type;
        u8 flags;
        u8 reserved;
        union {
                struct {
                        le32 offset;
                        le32 reserved;
                } PACKED pci_common_cfg;
                struct {
                        le16 index;
                        u8 reserved[6];
                } PACKED vq_index;
                u8 device_type_raw[8];
        } PACKED selector;
        le32 length;
} PACKED;

struct virtio_resource_obj_dev_parts {
        u8 type;
        u8 reserved[7];
} PACKED;

struct virtio_admin_cmd_dev_parts_metadata_data {
        struct virtio_admin_cmd_resource_obj_cmd_hdr hdr;
        u8 type;
        u8 reserved[7];
} PACKED;

struct virtio_admin_cmd_dev_parts_metadata_result {
        union {
                struct {
                        le32 size;
                        le32 reserved;
                } PACKED parts_size;
                struct {
                        le32 count;
                        le32 reserved;
                } PACKED hdr_list_count;
                struct {
                        le32 count;
                        le32 reserved;
                        struct virtio_dev_part_hdr hdrs[];
                } PACKED hdr_list;
        } PACKED;
} PACKED;

struct virtio_admin_cmd_dev_parts_get_data {
        struct virtio_admin_cmd_resource_obj_cmd_hdr hdr;
        u8 type;
        u8 reserved[7];
        struct virtio_dev_part_hdr hdr_list[];
} PACKED;

struct virtio_admin_cmd_dev_parts_set_data {
        struct virtio_admin_cmd_resource_obj_cmd_hdr hdr;
        u8 parts[];
} PACKED;

struct virtio_admin_cmd_dev_mode_set_data {
        u8 flags;
} PACKED;

struct virtio_dev_part_vq_cfg {
        le16 queue_size;
        le16 vector;
        le16 enabled;
        le16 reserved;
        le64 queue_desc;
        le64 queue_driver;
        le64 queue_device;
} PACKED;

struct virtio_dev_part_vq_notify_data {
        le16 queue_notify_off;
        le16 queue_notif_config_data;
        u8 reserved[4];
} PACKED;

/* --- PCI and network configuration --- */

struct virtio_pci_common_cfg {
        le32 device_feature_select;
        le32 device_feature;
        le32 driver_feature_select;
        le32 driver_feature;
        le16 config_msix_vector;
        le16 num_queues;
        u8 device_status;
        u8 config_generation;
        le16 queue_select;
        le16 queue_size;
        le16 queue_msix_vector;
        le16 queue_enable;
        le16 queue_notify_off;
        le64 queue_desc;
        le64 queue_driver;
        le64 queue_device;
        le16 queue_notif_config_data;
        le16 queue_reset;
        le16 admin_queue_index;
        le16 admin_queue_num;
} PACKED;

struct virtio_net_config {
        u8 mac[6];
        le16 status;
        le16 max_virtqueue_pairs;
        le16 mtu;
        le32 speed;
        u8 duplex;
        u8 rss_max_key_size;
        le16 rss_max_indirection_table_length;
        le32 supported_hash_types;
        le32 supported_tunnel_types;
} PACKED;

struct virtio_net_hdr {
        u8 flags;
        u8 gso_type;
        le16 hdr_len;
        le16 gso_size;
        le16 csum_start;
        le16 csum_offset;
        le16 num_buffers;
        le32 hash_value;
        le16 hash_report;
        le16 padding_reserved;
        le16 outer_th_offset;
        le16 inner_nh_offset;
        le16 outer_nh_offset;
        union {
                u8 padding_reserved_2[6];
                struct {
                        le32 resource_id;
                        le16 resource_type;
                } PACKED ipsec_resource_hdr;
        } PACKED;
} PACKED;

/* --- flow filter --- */

struct virtio_net_ff_cap_data {
        le32 groups_limit;
        le32 classifiers_limit;
        le32 rules_limit;
        le32 rules_per_group_limit;
        u8 last_rule_priority;
        u8 selectors_per_classifier_limit;
        u8 reserved[2];
} PACKED;

struct virtio_net_ff_selector {
        u8 type;
        u8 flags;
        u8 reserved[2];
        u8 length;
        u8 reserved1[3];
        u8 mask[];
} PACKED;

/* The selectors vary in length, so C cannot declare the array: bytes stand for it. */
struct virtio_net_ff_cap_mask_data {
        u8 count;
        u8 reserved[7];
        u8 selectors[];
} PACKED;

struct virtio_net_ff_actions {
        u8 count;
        u8 reserved[7];
        u8 actions[];
} PACKED;

struct virtio_net_resource_obj_ff_group {
        le16 group_priority;
} PACKED;

struct virtio_net_resource_obj_ff_classifier {
        u8 count;
        u8 reserved[7];
        u8 selectors[];
} PACKED;

struct virtio_net_resource_obj_ff_rule {
        le32 group_id;
        le32 classifier_id;
        u8 rule_priority;
        u8 key_length;
        u8 action;
        u8 reserved;
        le16 vq_index;
        u8 reserved1[2];
        u8 keys[];
} PACKED;

/* --- IPsec --- */

/* The C library owns the names in_addr and in6_addr. */
struct vc_in_addr {
        le32 s_addr;
} PACKED;

struct vc_in6_addr {
        u8 s6_u8[16];
} PACKED;

struct virtio_crypto_ipsec_resource_cap {
        le32 inb_sa_limit;
        le32 outb_sa_limit;
} PACKED;

struct virtio_crypto_ipsec_mode_cap {
        u8 mode;
        u8 reserved[3];
        le32 max_replay_win_sz;
        le32 options;
        le32 reserved1;
        le64 cipher_algo;
        le64 hmac_algo;
        le32 aead_algo;
        le32 max_cipher_key_len;
        le32 max_auth_key_len;
} PACKED;

struct virtio_crypto_ipsec_sa_cap_data {
        u8 count;
        u8 reserved[7];
        struct virtio_crypto_ipsec_mode_cap cap_mode[];
} PACKED;

struct virtio_crypto_ipsec_tunnel_param {
        u8 type;
        u8 reserved[3];
        union {
                struct {
                        struct vc_in_addr src_ip;
                        struct vc_in_addr dst_ip;
                        u8 dscp;
                        u8 df;
                        u8 ttl;
                        u8 reserved1;
                } PACKED ipv4;
                struct {
                        struct vc_in6_addr src_addr;
                        struct vc_in6_addr dst_addr;
                        le32 flabel;
                        u8 hlimit;
                        u8 dscp;
                        u8 reserved2[2];
                } PACKED ipv6;
        } PACKED;
} PACKED;

struct virtio_crypto_ipsec_lifetime {
        le64 packets_soft_limit;
        le64 bytes_soft_limit;
        le64 packets_hard_limit;
        le64 bytes_hard_limit;
} PACKED;

struct virtio_crypto_resource_obj_ipsec_sa_256b_key {
        u8 mode;
        u8 direction;
        u8 reserved[2];
        le32 obj_id;
        le32 spi;
        le32 salt;
        le64 options;
        struct virtio_crypto_ipsec_tunnel_param param;
        le16 udp_sport;
        le16 udp_dport;
        le32 replay_win_sz;
        le64 cipher_algo;
        struct {
                le16 length;
                le16 reserved1;
                u8 data[32];
        } PACKED cipher_key;
        le64 auth_algo;
        struct {
                le16 length;
                le16 reserved2;
                u8 data[32];
        } PACKED auth_key;
        struct virtio_crypto_ipsec_lifetime life;
} PACKED;

/* --- the January 2025 dialect --- */

struct rfc_virtio_admin_cmd_resource_obj_cmd_hdr {
        le16 type;
        u8 reserved[2];
        le32 id;
        le64 flags;
        u8 resource_obj_specific_data[];
} PACKED;

struct rfc_virtio_net_hdr {
        u8 flags;
        u8 gso_type;
        le16 hdr_len;
        le16 gso_size;
        le16 csum_start;
        le16 csum_offset;
        le16 num_buffers;
        le32 hash_value;
        le16 hash_report;
        le16 padding_reserved;
        struct {
                le32 resource_id;
                le16 resource_type;
        } PACKED ipsec_resource_hdr;
} PACKED;

struct rfc_virtio_crypto_ipsec_mode_cap {
        u8 mode;
        u8 reserved[3];
        le32 max_replay_win_sz;
        le32 options;
        le64 cipher_algo;
        le64 hmac_algo;
        le32 aead_algo;
        le32 max_cipher_key_len;
        le32 max_auth_key_len;
} PACKED;

struct rfc_virtio_crypto_ipsec_sa_cap_data {
        u8 count;
        u8 reserved[7];
        struct rfc_virtio_crypto_ipsec_mode_cap mode[];
} PACKED;

struct rfc_virtio_crypto_ipsec_tunnel_param {
        u8 type;
        u8 reserved[3];
        union {
                struct {
                        struct vc_in_addr src_ip;
                        struct vc_in_addr dst_ip;
                        u8 dscp;
                        u8 df;
                        u8 ttl;
                } PACKED ipv4;
                struct {
                        struct vc_in6_addr src_addr;
                        struct vc_in6_addr dst_addr;
                        le32 flabel;
                        u8 hlimit;
                        u8 dscp;
                } PACKED ipv6;
        } PACKED;
} PACKED;

struct rfc_virtio_crypto_resource_obj_ipsec_sa_256b_key {
        u8 mode;
        u8 direction;
        u8 reserved[2];
        le32 obj_id;
        le32 spi;
        le32 salt;
        le64 options;
        struct rfc_virtio_crypto_ipsec_tunnel_param param;
        le64 esn;
        le16 udp_sport;
        le16 udp_dport;
        le32 replay_win_sz;
        le64 cipher_algo;
        struct {
                le16 length;
                u8 data[32];
        } PACKED cipher_key;
        le64 auth_algo;
        struct {
                le16 length;
                u8 data[32];
        } PACKED auth_key;
} PACKED;

#endif
