package e2e

import (
	"strings"
)

// overTLS: what the kernel sends goes through the command that attached the device, which
// speaks TLS for it: to the next data plane when one has died, and not at all when the
// command has. What was written and flushed is there when the device is attached anew.
func (a *attached) overTLS() {
	a.t.Helper()
	a.mustRun("chmod 600 /etc/pki/client-key.pem")
	for args, want := range map[string]string{
		"'" + strings.Replace(a.secret, "hostname=localhost", "hostname=other", 1) + "'":    "not other",
		"'" + strings.Replace(a.secret, "certificates=/etc/pki", "certificates=/", 1) + "'": "ca-cert.pem",
		"--detach '" + a.secret + "'": "leave --detach out",
	} {
		if out, err := a.vm.Run(a.t.Context(), "cairn attach "+args); err == nil || !strings.Contains(out, want) {
			a.t.Errorf("attach %s: %v\n%s", args, err, out)
		}
	}
	a.begin(a.secret)
	a.mustRun(`set -e
		dd if=/dev/urandom of=/tmp/r bs=1M count=6 2>/dev/null
		dd if=/tmp/r of=/dev/nbd0 bs=1M seek=40 oflag=direct 2>/dev/null
		dd if=/dev/nbd0 bs=1M skip=40 count=6 iflag=direct 2>/dev/null | cmp - /tmp/r`)
	a.serverDies(1)
	a.mustRun("dd if=/tmp/r of=/dev/nbd0 bs=1M seek=50 oflag=direct conv=fsync 2>/dev/null")

	if err := a.attach.Signal(9); err != nil {
		a.t.Fatal(err)
	}
	if err := a.attach.Wait(); err == nil {
		a.t.Error("attach was killed and ended well")
	}
	a.mustRun("cairn detach --force /dev/nbd0 && test $(blockdev --getsize64 /dev/nbd0) = 0")
	a.idle()
	a.begin(a.secret)
	a.mustRun(`for at in 40 50; do
			dd if=/dev/nbd0 bs=1M skip=$at count=6 iflag=direct 2>/dev/null | cmp - /tmp/r || exit 1
		done
		cairn detach /dev/nbd0`)
	if err := a.attach.Wait(); err != nil {
		a.t.Errorf("attach ended with: %v\n%s", err, a.said)
	}
	a.idle()
}
