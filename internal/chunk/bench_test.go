package chunk

import (
	"crypto/sha256"
	"os"
	"testing"
)

// sample returns something like a disk image: this test's own program, or the
// file that CAIRN_BENCH_IMAGE names.
func sample(b *testing.B) []byte {
	b.Helper()
	name := os.Getenv("CAIRN_BENCH_IMAGE")
	if name == "" {
		var err error
		if name, err = os.Executable(); err != nil {
			b.Fatal(err)
		}
	}
	data, err := os.ReadFile(name)
	if err != nil {
		b.Fatal(err)
	}
	return data[:len(data)/MaxPlain*MaxPlain]
}

func BenchmarkID(b *testing.B) {
	plain := noise(b, MaxPlain)
	b.Run("BLAKE3", func(b *testing.B) {
		d := testDomain(b, "p")
		b.SetBytes(MaxPlain)
		b.ReportAllocs()
		for b.Loop() {
			d.ID(Data, plain)
		}
	})
	b.Run("SHA-256", func(b *testing.B) {
		b.SetBytes(MaxPlain)
		for b.Loop() {
			sha256.Sum256(plain)
		}
	})
}

func BenchmarkSeal(b *testing.B) {
	d := testDomain(b, "p")
	s := testSealer(b, d, PackID{9})
	dst := make([]byte, 0, SealBound(MaxPlain))
	for name, data := range map[string][]byte{"image": sample(b), "noise": noise(b, 1<<20)} {
		b.Run(name, func(b *testing.B) {
			b.SetBytes(MaxPlain)
			b.ReportAllocs()
			at, in, out := 0, 0, 0
			for b.Loop() {
				sealed, err := s.Seal(dst, 0, Data, ID{}, data[at:at+MaxPlain])
				if err != nil {
					b.Fatal(err)
				}
				in += MaxPlain
				out += len(sealed)
				at = (at + MaxPlain) % len(data)
			}
			b.ReportMetric(float64(in)/float64(out), "ratio")
		})
	}
}

func BenchmarkOpen(b *testing.B) {
	d := testDomain(b, "p")
	s := testSealer(b, d, PackID{9})
	for name, data := range map[string][]byte{"image": sample(b), "noise": noise(b, 4<<20)} {
		b.Run(name, func(b *testing.B) {
			var ids []ID
			var sealed [][]byte
			for at := 0; at+MaxPlain <= len(data) && len(ids) < 1000; at += MaxPlain {
				plain := data[at : at+MaxPlain]
				ids = append(ids, d.ID(Data, plain))
				x, err := s.Seal(nil, 0, Data, ids[len(ids)-1], plain)
				if err != nil {
					b.Fatal(err)
				}
				sealed = append(sealed, x)
			}
			dst := make([]byte, 0, MaxPlain)
			b.SetBytes(MaxPlain)
			b.ReportAllocs()
			i := 0
			for b.Loop() {
				if _, err := s.Open(dst, 0, Data, ids[i], sealed[i]); err != nil {
					b.Fatal(err)
				}
				i = (i + 1) % len(ids)
			}
		})
	}
}
