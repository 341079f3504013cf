package nbd

// reject answers a request with an error, and takes its payload out of the way.
func (t *transmission) reject(r request, e Error, text string) error {
	if r.payload {
		if err := t.out.flush(); err != nil {
			return err
		}
		if err := t.in.discard(r.size()); err != nil {
			return err
		}
	}
	return t.fail(r, e, text, false)
}

// allowed holds the flags that each command takes besides FUA, which any may
// carry.
var allowed = [...]uint16{
	cmdRead:        cmdFlagDF,
	cmdWrite:       0,
	cmdDisc:        0,
	cmdFlush:       0,
	cmdTrim:        0,
	cmdCache:       0,
	cmdWriteZeroes: cmdFlagNoHole | cmdFlagFastZero,
	cmdBlockStatus: cmdFlagReqOne,
}

// check returns the error that answers a request which must not reach the
// device, or zero. No arithmetic on r's numbers can overflow here.
func (t *transmission) check(r request) (Error, string) {
	if int(r.command) >= len(allowed) || r.command == cmdDisc {
		return EINVAL, "unknown command"
	}
	writes := r.command == cmdWrite || r.command == cmdTrim || r.command == cmdWriteZeroes
	if writes && t.readOnly {
		return EPERM, "the export is read-only"
	}
	mask := allowed[r.command]
	if !t.readOnly {
		mask |= cmdFlagFUA
	}
	if !t.structured {
		mask &^= cmdFlagDF
	}
	if t.extended && r.command == cmdWrite {
		mask |= cmdFlagPayloadLen
	}
	if r.flags&^mask != 0 {
		return EINVAL, "unknown or unadvertised command flags"
	}
	if r.command == cmdFlush {
		if r.offset != 0 || r.length != 0 {
			return EINVAL, "FLUSH takes no range"
		}
		return 0, ""
	}
	size := uint64(max(t.dev.Size(), 0))
	switch {
	case r.offset > size || r.length > size-r.offset:
		if r.command == cmdWrite || r.command == cmdWriteZeroes {
			return ENOSPC, "beyond the end of the export"
		}
		return EINVAL, "beyond the end of the export"
	case (r.command == cmdRead || r.command == cmdWrite) && r.length > maxPayload:
		return EINVAL, "request larger than 64 MiB"
	case r.command == cmdBlockStatus && (len(t.contexts) == 0 || r.length == 0):
		return EINVAL, "no metadata context was negotiated, or nothing was asked"
	}
	return 0, ""
}
