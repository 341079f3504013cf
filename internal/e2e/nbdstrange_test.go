package e2e

import (
	"net/url"
)

// nbdsh runs a script of libnbd that may break every rule: libnbd checks nothing, and only
// adds the flag that says of a WRITE that it has a payload.
func (s *toolUse) nbdsh(uri, script string) string {
	s.Helper()
	return s.run("nbdsh", "-c", `
h.set_uri_allow_local_file(True)
h.connect_uri("`+uri+`")
h.set_strict_mode(getattr(nbd, "STRICT_AUTO_FLAG", 0))
def errno(f):
    try:
        f()
        return "none"
    except nbd.Error as e:
        return e.errno
`, "-c", script)
}

// useNbdsh: who misbehaves gets the errors of the protocol page, on a connection that goes
// on.
func useNbdsh(s *toolUse) {
	s.disk = s.volume(s.T, s.disk.name+"-large", 200<<20)
	s.has(s.nbdsh(s.uri(s.disk), `
size = h.get_size()
big = 64 << 20
h.pwrite(b"still here", 100)
wrong = [
    ("past-end read", lambda: h.pread(512, size), "EINVAL"),
    ("read across the end", lambda: h.pread(2, size - 1), "EINVAL"),
    ("past-end write", lambda: h.pwrite(b"x" * 512, size), "ENOSPC"),
    ("write across the end", lambda: h.pwrite(b"x" * 512, size - 1), "ENOSPC"),
    ("write at 2^63 - 1", lambda: h.pwrite(b"x" * 512, (1 << 63) - 1), "ENOSPC"),
    ("past-end zero", lambda: h.zero(512, size), "ENOSPC"),
    ("past-end trim", lambda: h.trim(512, size), "EINVAL"),
    ("past-end cache", lambda: h.cache(512, size), "EINVAL"),
    ("unknown flag of read", lambda: h.pread(512, 0, 1 << 9), "EINVAL"),
    ("unknown flag of write", lambda: h.pwrite(b"x" * 512, 0, 1 << 9), "EINVAL"),
    ("unknown flag of trim", lambda: h.trim(512, 0, 1 << 15), "EINVAL"),
    ("write with DF", lambda: h.pwrite(b"x" * 512, 0, nbd.CMD_FLAG_DF), "EINVAL"),
    ("write, no hole", lambda: h.pwrite(b"x" * 512, 0, nbd.CMD_FLAG_NO_HOLE), "EINVAL"),
    ("status of no context", lambda: h.block_status(512, 0, lambda *a: 0), "EINVAL"),
    ("read of 64 MiB + 1", lambda: h.pread(big + 1, 0), "EINVAL"),
    ("write of 64 MiB + 1", lambda: h.pwrite(bytearray(big + 1), 0), "EINVAL"),
    ("unaligned read", lambda: h.pread(13, 7), "none"),
    ("unaligned write", lambda: h.pwrite(b"x" * 13, 1 << 20 | 7), "none"),
    ("unaligned zero", lambda: h.zero(13, 4097), "none"),
    ("unaligned trim", lambda: h.trim(13, 8193), "none"),
    ("FUA of flush", lambda: h.flush(nbd.CMD_FLAG_FUA), "none"),
    ("FUA of read", lambda: h.pread(512, 0, nbd.CMD_FLAG_FUA), "none"),
    ("read of nothing", lambda: h.pread(0, 0), "none"),
    ("write of nothing", lambda: h.pwrite(b"", 0), "none"),
    ("zero of nothing", lambda: h.zero(0, 0), "none"),
    ("trim of nothing", lambda: h.trim(0, 0), "none"),
    ("read of 64 MiB", lambda: h.pread(big, 0), "none"),
    ("write of 64 MiB", lambda: h.pwrite(b"y" * big, 128 << 20), "none"),
]
for what, f, want in wrong:
    got = errno(f)
    if got != want:
        print(what, "is answered", got, "not", want)
    if h.pread(10, 100) != b"still here":
        print(what, "changed what was there")
print(len(wrong), "tried,", h.pread(1, (192 << 20) - 1))
`), "28 tried, bytearray(b'y')")
	s.has(s.nbdsh(s.uri(s.disk.as("@ro")), `
print(errno(lambda: h.pwrite(b"x" * 70000, 0)), errno(lambda: h.zero(512, 0)), errno(lambda: h.trim(512, 0)), h.pread(10, 100))
`), "EPERM EPERM EPERM bytearray(b'still here')")
}

// useStrangeCommands: libnbd sends no command that it does not know, so a script does.
func useStrangeCommands(s *toolUse) {
	u, err := url.Parse(s.plain(s.disk))
	if err != nil {
		s.Fatal(err)
	}
	s.has(s.run("python3", "-c", strangeCommands, u.Query().Get("socket"), s.disk.name), "12 tried")
}

const strangeCommands = `
import socket, struct, sys
s = socket.socket(socket.AF_UNIX)
s.connect(sys.argv[1])
def read(n):
    b = b""
    while len(b) < n:
        got = s.recv(n - len(b))
        assert got, "the server hung up"
        b += got
    return b
def ask(flags, command, offset, length, payload=b""):
    s.sendall(struct.pack(">IHHQQI", 0x25609513, flags, command, 42, offset, length) + payload)
    magic, error, cookie = struct.unpack(">IIQ", read(16))
    assert (magic, cookie) == (0x67446698, 42), "reply %x to %d" % (magic, cookie)
    return error
assert read(18)[:16] == b"NBDMAGICIHAVEOPT"
name = sys.argv[2].encode()
s.sendall(struct.pack(">I8sII", 3, b"IHAVEOPT", 1, len(name)) + name)
size, flags = struct.unpack(">QH", read(10))
tried = 0
for flags, command in [(0, 8), (0, 99), (0, 0xffff), (0xffff, 0xffff), (0, 3 | 1 << 8), (1 << 14, 0), (1 << 14, 1), (1 << 5, 1), (1 << 14, 3), (1 << 5, 4), (1 << 14, 6), (0, 7)]:
    got = ask(flags, command, 0, 4096, b"x" * 4096 if command == 1 else b"")
    assert got == 22, "command %d with flags %#x is answered %d" % (command, flags, got)
    assert ask(0, 3, 0, 0) == 0, "flush after command %d with flags %#x" % (command, flags)
    tried += 1
print(tried, "tried")
`
