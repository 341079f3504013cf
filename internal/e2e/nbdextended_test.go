package e2e

// useExtended: libnbd, which has the protocol from its authors, sees of a disk of 6 TiB
// what it should where lengths have more than 32 bits, and asks about one context alone.
func useExtended(s *toolUse) {
	s.disk = s.volume(s.T, s.disk.name+"-vast", 6<<40)
	if _, err := s.control.CreateCheckpoint(s.Context(), s.disk.name, "third.party"); err != nil {
		s.Fatal(err)
	}
	s.has(s.run("nbdsh", "-c", "uri = '"+s.uri(s.disk)+"'", "-c", extendedScript), "all said")
	// Another client, and what it makes of the same.
	s.has(s.run("nbdinfo", "--map=qemu:dirty-bitmap:third.party", s.uri(s.disk)), "0 21474902016 1 dirty 21474902016 1078036725760 0 clean 1099511627776 65536 1 dirty")
	s.has(s.run("nbdinfo", "--map", "--totals", s.uri(s.disk)), "6597069701120 100.0% 3 hole,zero")
	s.qemu("qemu-io", []string{"-c", "write -P 9 5T 1M", "-c", "write -z -u -n 4T 9G", "-c", "read -P 9 5T 1M"}, s.node(s.disk))
	s.has(s.run("nbdinfo", "--map", s.uri(s.disk)), "5497558138880 1048576 0 data")
}

const extendedScript = `
dirty = "qemu:dirty-bitmap:third.party"
T = 1 << 40
h.add_meta_context("base:allocation")
h.add_meta_context(dirty)
h.connect_uri(uri)
h.set_strict_mode(nbd.STRICT_AUTO_FLAG) # what is wrong goes to the server
size = h.get_size()

def errno(f):
    try:
        f()
        return "none"
    except nbd.Error as e:
        return e.errno

def same(what, got, want):
    assert got == want, "%s: got %r, want %r" % (what, got, want)

def status(off, n, contexts=None, flags=0):
    said = []
    def extent(context, offset, entries, error):
        same("offset of a status", (offset, error.value), (off, 0))
        said.append((context, entries))
        return 0
    if contexts is None:
        h.block_status_64(n, off, extent, flags)
    else:
        h.block_status_filter(n, off, contexts, extent, flags)
    return said

same("headers", h.get_extended_headers_negotiated(), True)
same("payload", h.can_block_status_payload(), True)
same("size", size, 6 * T)

# A map of everything is one extent, and a filter picks contexts in any order.
whole = [(size, 3)]
same("both", sorted(status(0, size)), [("base:allocation", whole), (dirty, [(size, 0)])])
same("one", status(0, size, [dirty]), [(dirty, [(size, 0)])])
same("other", status(T, 5 * T, ["base:allocation"]), [("base:allocation", [(5 * T, 3)])])
same("both by name", sorted(status(0, size, [dirty, "base:allocation"])), [("base:allocation", whole), (dirty, [(size, 0)])])
same("none", errno(lambda: status(0, size, [])), "EINVAL")
same("twice", errno(lambda: status(0, size, [dirty, dirty])), "EINVAL")
same("beyond the end", errno(lambda: status(0, size + 1, [dirty])), "EINVAL")

# Data far out.
data = b"cairn" * 13107
h.pwrite(data, T)
same("far data", h.pread(len(data), T), data)
same("changed", status(0, size, [dirty]), [(dirty, [(T, 0), (65536, 1), (5 * T - 65536, 0)])])
same("one extent", status(T + 1, 2 * T, [dirty], nbd.CMD_FLAG_REQ_ONE), [(dirty, [(65535, 1)])])
chunks = []
def chunk(buf, offset, state, error):
    chunks.append((offset, len(buf), state))
    return 0
same("read in chunks", h.pread_structured(1 << 20, T - (1 << 19), chunk)[1 << 19:][:len(data)], data)
same("bytes in chunks", sum(n for _, n, _ in chunks), 1 << 20)

# Lengths of more than 32 bits, and where they end.
G = 1 << 30
h.pwrite(b"trim", 19 * G)
h.trim(20 * G, 0)
same("trimmed", h.pread(4, 19 * G), b"\0\0\0\0")
h.pwrite(b"zero", 19 * G)
h.zero(20 * G, 12345)
same("zeroed", h.pread(4, 19 * G), b"\0\0\0\0")
h.flush()
same("changed", status(0, T, [dirty]), [(dirty, [(20 * G + 65536, 1), (T - 20 * G - 65536, 0)])])
for what, f, want in [
    ("trim beyond the end", lambda: h.trim(5 * T, T + 1), "EINVAL"),
    ("zero beyond the end", lambda: h.zero(5 * T, T + 1), "ENOSPC"),
    ("zero of 2^63 - 1", lambda: h.zero((1 << 63) - 1, 1), "ENOSPC"),
    ("cache beyond the end", lambda: h.cache(5 * T, T + 1), "EINVAL"),
    ("read beyond the end", lambda: h.pread(4096, size), "EINVAL"),
    ("write beyond the end", lambda: h.pwrite(b"x" * 4096, size), "ENOSPC"),
    ("write beyond the end, large", lambda: h.pwrite(b"x" * (1 << 20), size - 4096), "ENOSPC"),
    ("fast zero", lambda: h.zero(5 * G, G, nbd.CMD_FLAG_FAST_ZERO), "none"),
]:
    same(what, errno(f), want)
    same("flush after " + what, errno(h.flush), "none")
print("all said")
`
