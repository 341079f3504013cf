package nbd

import (
	"errors"
	"fmt"
	"io/fs"
	"reflect"
	"strings"
	"testing"
)

func TestProbe(t *testing.T) {
	noLeaks(t)
	m := newMemory(1 << 20)
	e := m.export("disk")
	uri := URI(listen(t, serverOf(t, e)), "disk")
	d, err := Probe(t.Context(), uri, ClientOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if d.Size != 1<<20 || d.ReadOnly || !d.CanFlush || !d.CanFUA || !d.CanTrim || !d.CanZero || !d.CanMultiConn || !d.Structured || d.TLS ||
		d.BlockSizes != (BlockSizes{1, 4096, 32 << 20}) || d.Name != "disk" || d.Description != "test disk" {
		t.Errorf("%+v", d)
	}
	if b := d.DirtyBitmaps(); ContextDirtyBitmap+strings.Join(b, "") != dirtyName || len(d.Contexts) != 2 {
		t.Error(b, d.Contexts)
	}
	if m.opened.Load() != 0 {
		t.Error("the export was opened")
	}
	if _, err := Probe(t.Context(), strings.Replace(uri, "/disk?", "/nope?", 1), ClientOptions{}); !errors.Is(err, fs.ErrNotExist) {
		t.Error(err)
	}
}

// What a server can do is told as it is, however little that is.
func TestProbeServers(t *testing.T) {
	info := func(w *wire, size uint64, flags uint16) {
		w.answer(w.readOption(), repInfo, infoExport, size, flags)
		w.answer(optInfo, repAck)
		w.readOption() // ABORT
	}
	for _, test := range []struct {
		name string
		talk func(w *wire)
		want Details
	}{
		{"extended, nothing else", func(w *wire) {
			w.greet()
			w.answer(w.readOption(), repAck)
			w.answer(w.readOption(), repErrUnsup)
			info(w, 1<<50, flagHasFlags|flagReadOnly|flagRotational)
		}, Details{Size: 1 << 50, ReadOnly: true, Rotational: true, Structured: true, Extended: true}},
		{"fast zeros", func(w *wire) {
			w.greetOption()
			w.answer(optStructuredReply, repAck)
			w.readOption()
			w.answer(optListMetaContext, repMetaContext, uint32(0), "qemu:dirty-bitmap:b1")
			w.answer(optListMetaContext, repMetaContext, uint32(0), "base:allocation")
			w.answer(optListMetaContext, repMetaContext, uint32(0), "qemu:dirty-bitmap:\x1b[2J")
			w.answer(optListMetaContext, repAck)
			info(w, 512, flagHasFlags|flagSendZeroes|flagSendFastZero)
		}, Details{Size: 512, CanZero: true, CanFastZero: true, Structured: true, Contexts: []string{"base:allocation", "qemu:dirty-bitmap:b1"}}},
		{"without INFO", func(w *wire) {
			w.greetOption()
			w.answer(optStructuredReply, repErrUnsup)
			w.answer(w.readOption(), repErrUnsup)
			w.readOption()
			w.send(uint64(512), rwFlags)
		}, Details{Size: 512, CanFlush: true, CanFUA: true, CanTrim: true, CanZero: true, CanFastZero: true, CanMultiConn: true}},
		{"without options", func(w *wire) {
			w.send("NBDMAGIC", "IHAVEOPT", uint16(0))
			w.read(4)
			w.readOption()
			w.send(uint64(512), uint16(0), make([]byte, exportNamePadding))
		}, Details{Size: 512}},
	} {
		t.Run(test.name, func(t *testing.T) {
			got, err := Probe(t.Context(), fakeServer(t, test.talk), ClientOptions{})
			got.BlockSizes = BlockSizes{}
			if err != nil || !reflect.DeepEqual(got, test.want) {
				t.Errorf("%+v, %v; want %+v", got, err, test.want)
			}
		})
	}
}

func TestProbeHostile(t *testing.T) {
	contexts := func(w *wire, n int, name string) {
		w.greetOption()
		w.answer(optStructuredReply, repAck)
		w.readOption()
		for i := range n {
			if _, err := w.nc.Write(encode(magicOptReply, optListMetaContext, repMetaContext, uint32(4+len(name)), uint32(i), name)); err != nil {
				return
			}
		}
	}
	for _, test := range []struct {
		want string
		talk func(w *wire)
	}{
		{fmt.Sprintf("more than %d metadata contexts", maxOffered), func(w *wire) { contexts(w, maxOffered+1, "x:y") }},
		{"malformed metadata context", func(w *wire) { contexts(w, 1, strings.Repeat("n", maxName+1)) }},
		{"malformed metadata context", func(w *wire) {
			contexts(w, 0, "")
			w.answer(optListMetaContext, repMetaContext, uint16(1))
		}},
		{"without telling its size", func(w *wire) {
			contexts(w, 0, "")
			w.answer(optListMetaContext, repAck)
			w.answer(w.readOption(), repAck)
		}},
		{"requires TLS", func(w *wire) { w.greet(); w.answer(w.readOption(), repErrTLSReqd) }},
	} {
		if _, err := Probe(t.Context(), fakeServer(t, test.talk), ClientOptions{}); err == nil || !strings.Contains(err.Error(), test.want) {
			t.Errorf("%v, want something of %q", err, test.want)
		}
	}
}
