/**
 * Every number of the NBD protocol that SWAM uses or recognises, under the names of the specification
 * (doc/proto.md in the NetworkBlockDevice/nbd repository) and in its order. Numbers that SWAM only recognises, to name
 * them in a log or to refuse them, are here too. Ceilings of our own are in lib/core/limits.ts.
 */

// Handshake: magic numbers ("Newstyle negotiation", "Oldstyle negotiation").
export const NBD_INIT_MAGIC = 0x4e42444d41474943n
export const NBD_OPTS_MAGIC = 0x49484156454f5054n
export const NBD_CLISERV_MAGIC = 0x00420281861253n
export const NBD_REP_MAGIC = 0x0003e889045565a9n

// Handshake flags of the server (16 bits) and of the client (32 bits).
export const NBD_FLAG_FIXED_NEWSTYLE = 1
export const NBD_FLAG_NO_ZEROES = 2
export const NBD_FLAG_C_FIXED_NEWSTYLE = 1
export const NBD_FLAG_C_NO_ZEROES = 2

// Transmission flags.
export const NBD_FLAG_HAS_FLAGS = 1
export const NBD_FLAG_READ_ONLY = 2
export const NBD_FLAG_SEND_FLUSH = 4
export const NBD_FLAG_SEND_FUA = 8
export const NBD_FLAG_ROTATIONAL = 16
export const NBD_FLAG_SEND_TRIM = 32
export const NBD_FLAG_SEND_WRITE_ZEROES = 64
export const NBD_FLAG_SEND_DF = 128
export const NBD_FLAG_CAN_MULTI_CONN = 256
export const NBD_FLAG_SEND_RESIZE = 512
export const NBD_FLAG_SEND_CACHE = 1024
export const NBD_FLAG_SEND_FAST_ZERO = 2048
export const NBD_FLAG_BLOCK_STATUS_PAYLOAD = 4096

// Option types.
export const NBD_OPT_EXPORT_NAME = 1
export const NBD_OPT_ABORT = 2
export const NBD_OPT_LIST = 3
export const NBD_OPT_PEEK_EXPORT = 4
export const NBD_OPT_STARTTLS = 5
export const NBD_OPT_INFO = 6
export const NBD_OPT_GO = 7
export const NBD_OPT_STRUCTURED_REPLY = 8
export const NBD_OPT_LIST_META_CONTEXT = 9
export const NBD_OPT_SET_META_CONTEXT = 10
export const NBD_OPT_EXTENDED_HEADERS = 11

// Option reply types.
export const NBD_REP_ACK = 1
export const NBD_REP_SERVER = 2
export const NBD_REP_INFO = 3
export const NBD_REP_META_CONTEXT = 4
export const NBD_REP_FLAG_ERROR = 0x80000000
export const NBD_REP_ERR_UNSUP = 0x80000001
export const NBD_REP_ERR_POLICY = 0x80000002
export const NBD_REP_ERR_INVALID = 0x80000003
export const NBD_REP_ERR_PLATFORM = 0x80000004
export const NBD_REP_ERR_TLS_REQD = 0x80000005
export const NBD_REP_ERR_UNKNOWN = 0x80000006
export const NBD_REP_ERR_SHUTDOWN = 0x80000007
export const NBD_REP_ERR_BLOCK_SIZE_REQD = 0x80000008
export const NBD_REP_ERR_TOO_BIG = 0x80000009
export const NBD_REP_ERR_EXT_HEADER_REQD = 0x8000000a

// Information types of NBD_OPT_INFO and NBD_OPT_GO.
export const NBD_INFO_EXPORT = 0
export const NBD_INFO_NAME = 1
export const NBD_INFO_DESCRIPTION = 2
export const NBD_INFO_BLOCK_SIZE = 3

// The one metadata context of the specification, and the bits of its extents.
export const NBD_CONTEXT_BASE_ALLOCATION = 'base:allocation'
export const NBD_STATE_HOLE = 1
export const NBD_STATE_ZERO = 2

// Transmission: magic numbers.
export const NBD_REQUEST_MAGIC = 0x25609513
export const NBD_EXTENDED_REQUEST_MAGIC = 0x21e41c71
export const NBD_SIMPLE_REPLY_MAGIC = 0x67446698
export const NBD_STRUCTURED_REPLY_MAGIC = 0x668e33ef
export const NBD_EXTENDED_REPLY_MAGIC = 0x6e8a278c

// Request types.
export const NBD_CMD_READ = 0
export const NBD_CMD_WRITE = 1
export const NBD_CMD_DISC = 2
export const NBD_CMD_FLUSH = 3
export const NBD_CMD_TRIM = 4
export const NBD_CMD_CACHE = 5
export const NBD_CMD_WRITE_ZEROES = 6
export const NBD_CMD_BLOCK_STATUS = 7
export const NBD_CMD_RESIZE = 8

// Command flags.
export const NBD_CMD_FLAG_FUA = 1
export const NBD_CMD_FLAG_NO_HOLE = 2
export const NBD_CMD_FLAG_DF = 4
export const NBD_CMD_FLAG_REQ_ONE = 8
export const NBD_CMD_FLAG_FAST_ZERO = 16
export const NBD_CMD_FLAG_PAYLOAD_LEN = 32

// Structured reply flags and types.
export const NBD_REPLY_FLAG_DONE = 1
export const NBD_REPLY_TYPE_NONE = 0
export const NBD_REPLY_TYPE_OFFSET_DATA = 1
export const NBD_REPLY_TYPE_OFFSET_HOLE = 2
export const NBD_REPLY_TYPE_BLOCK_STATUS = 5
export const NBD_REPLY_TYPE_BLOCK_STATUS_EXT = 6
export const NBD_REPLY_TYPE_FLAG_ERROR = 0x8000
export const NBD_REPLY_TYPE_ERROR = 0x8001
export const NBD_REPLY_TYPE_ERROR_OFFSET = 0x8002

// Error values of replies.
export const NBD_EPERM = 1
export const NBD_EIO = 5
export const NBD_ENOMEM = 12
export const NBD_EINVAL = 22
export const NBD_ENOSPC = 28
export const NBD_EOVERFLOW = 75
export const NBD_ENOTSUP = 95
export const NBD_ESHUTDOWN = 108

// Sizes of the fixed parts of messages.
export const NBD_GREETING_BYTES = 18
export const NBD_CLIENT_FLAGS_BYTES = 4
export const NBD_OPTION_HEADER_BYTES = 16
export const NBD_OPTION_REPLY_HEADER_BYTES = 20
export const NBD_EXPORT_REPLY_BYTES = 10
export const NBD_EXPORT_REPLY_ZEROES_BYTES = 124
export const NBD_REQUEST_BYTES = 28
export const NBD_SIMPLE_REPLY_BYTES = 16
export const NBD_STRUCTURED_REPLY_BYTES = 20

/** "Strings": no string of the protocol may be longer. */
export const NBD_STRING_BYTES_MAX = 4096
