package nbd

import "github.com/pojntfx/go-nbd/pkg/protocol"

// Numbers of the protocol, under its own names less "NBD_". Those that package
// protocol has are taken from there.
const (
	magicNBD        = protocol.NEGOTIATION_MAGIC_OLDSTYLE // "NBDMAGIC", the first bytes of any server
	magicOption     = protocol.NEGOTIATION_MAGIC_OPTION   // "IHAVEOPT"
	magicOldstyle   = uint64(0x00420281861253)
	magicOptReply   = protocol.NEGOTIATION_MAGIC_REPLY
	magicRequest    = protocol.TRANSMISSION_MAGIC_REQUEST
	magicSimple     = protocol.TRANSMISSION_MAGIC_REPLY
	magicStructured = uint32(0x668e33ef)
	magicExtRequest = uint32(0x21e41c71)
	magicExtReply   = uint32(0x6e8a278c)
)

// Handshake flags, the same bits from server and client.
const (
	flagFixedNewstyle = protocol.NEGOTIATION_HANDSHAKE_FLAG_FIXED_NEWSTYLE
	flagNoZeroes      = uint16(1 << 1)
)

// Options.
const (
	optExportName      = uint32(1)
	optAbort           = protocol.NEGOTIATION_ID_OPTION_ABORT
	optList            = protocol.NEGOTIATION_ID_OPTION_LIST
	optStartTLS        = uint32(5)
	optInfo            = protocol.NEGOTIATION_ID_OPTION_INFO
	optGo              = protocol.NEGOTIATION_ID_OPTION_GO
	optStructuredReply = uint32(8)
	optListMetaContext = uint32(9)
	optSetMetaContext  = uint32(10)
	optExtendedHeaders = uint32(11)
)

// Option replies.
const (
	repAck           = protocol.NEGOTIATION_TYPE_REPLY_ACK
	repServer        = protocol.NEGOTIATION_TYPE_REPLY_SERVER
	repInfo          = protocol.NEGOTIATION_TYPE_REPLY_INFO
	repMetaContext   = uint32(4)
	repError         = uint32(1 << 31)
	repErrUnsup      = protocol.NEGOTIATION_TYPE_REPLY_ERR_UNSUPPORTED
	repErrPolicy     = repError | 2
	repErrInvalid    = repError | 3
	repErrPlatform   = repError | 4
	repErrTLSReqd    = repError | 5
	repErrUnknown    = protocol.NEGOTIATION_TYPE_REPLY_ERR_UNKNOWN
	repErrShutdown   = repError | 7
	repErrBlockSize  = repError | 8
	repErrTooBig     = repError | 9
	repErrExtHdrReqd = repError | 10
)

// Kinds of information about an export.
const (
	infoExport      = protocol.NEGOTIATION_TYPE_INFO_EXPORT
	infoName        = protocol.NEGOTIATION_TYPE_INFO_NAME
	infoDescription = protocol.NEGOTIATION_TYPE_INFO_DESCRIPTION
	infoBlockSize   = protocol.NEGOTIATION_TYPE_INFO_BLOCKSIZE
)

// Transmission flags.
const (
	flagHasFlags     = protocol.NEGOTIATION_REPLY_FLAGS_HAS_FLAGS
	flagReadOnly     = uint16(1 << 1)
	flagSendFlush    = uint16(1 << 2)
	flagSendFUA      = uint16(1 << 3)
	flagRotational   = uint16(1 << 4)
	flagSendTrim     = uint16(1 << 5)
	flagSendZeroes   = uint16(1 << 6)
	flagSendDF       = uint16(1 << 7)
	flagCanMultiConn = protocol.NEGOTIATION_REPLY_FLAGS_CAN_MULTI_CONN
	flagSendCache    = uint16(1 << 10)
	flagSendFastZero = uint16(1 << 11)
	flagStatusFilter = uint16(1 << 12) // BLOCK_STAT_PAYLOAD
)

// Commands.
const (
	cmdRead        = protocol.TRANSMISSION_TYPE_REQUEST_READ
	cmdWrite       = protocol.TRANSMISSION_TYPE_REQUEST_WRITE
	cmdDisc        = protocol.TRANSMISSION_TYPE_REQUEST_DISC
	cmdFlush       = uint16(3)
	cmdTrim        = uint16(4)
	cmdCache       = uint16(5)
	cmdWriteZeroes = uint16(6)
	cmdBlockStatus = uint16(7)
)

// Command flags.
const (
	cmdFlagFUA        = uint16(1 << 0)
	cmdFlagNoHole     = uint16(1 << 1)
	cmdFlagDF         = uint16(1 << 2)
	cmdFlagReqOne     = uint16(1 << 3)
	cmdFlagFastZero   = uint16(1 << 4)
	cmdFlagPayloadLen = uint16(1 << 5) // only with extended headers
)

// Chunks of structured replies.
const (
	chunkFlagDone     = uint16(1)
	chunkNone         = uint16(0)
	chunkOffsetData   = uint16(1)
	chunkOffsetHole   = uint16(2)
	chunkBlockStatus  = uint16(5)
	chunkStatusExt    = uint16(6) // BLOCK_STATUS with 64-bit lengths
	chunkErrorBit     = uint16(1 << 15)
	chunkError        = chunkErrorBit | 1
	chunkErrorOffset  = chunkErrorBit | 2
	requestSize       = 28 // magic, flags, command, cookie, offset, length
	simpleReplySize   = 16 // magic, error, cookie
	chunkHeaderSize   = 20 // magic, flags, type, cookie, length
	extRequestSize    = 32 // magic, flags, command, cookie, offset, 64-bit length
	extReplySize      = 32 // magic, flags, type, cookie, offset, 64-bit length
	optionHeaderSize  = 16 // magic, option, length
	optReplyHeadSize  = 20 // magic, option, type, length
	exportNamePadding = 124
)

// Limits that both sides keep.
const (
	maxName         = 4096     // of an export or context, by the protocol
	maxText         = 4096     // of a message or description, by the protocol
	maxOptionData   = 64 << 10 // of one option, or one option's reply
	maxOptions      = 32       // in one handshake
	maxPerListed    = 4        // options more for each export in a list
	maxPayload      = 64 << 20 // of one READ or WRITE that the server takes
	offeredPayload  = 32 << 20 // what it tells clients
	preferredBlock  = 4096
	defaultPayload  = 32 << 20 // what a client may send to a server that says nothing
	maxContexts     = 64       // selected by one client
	maxStatusExtent = 16 << 10 // extents in one BLOCK_STATUS chunk that the server sends
)
