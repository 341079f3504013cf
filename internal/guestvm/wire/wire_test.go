package wire

import (
	"bytes"
	"errors"
	"io"
	"testing"

	"pgregory.net/rapid"
)

func TestWhatIsWrittenIsRead(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		frames := rapid.SliceOfN(rapid.Custom(func(t *rapid.T) Frame {
			return Frame{
				Stream: rapid.Uint32().Draw(t, "stream"), Kind: Kind(rapid.Byte().Draw(t, "kind")),
				Payload: rapid.SliceOfN(rapid.Byte(), 0, 100).Draw(t, "payload"),
			}
		}), 0, 5).Draw(t, "frames")
		var b bytes.Buffer
		for _, f := range frames {
			if err := Write(&b, f); err != nil {
				t.Fatal(err)
			}
		}
		whole := bytes.Clone(b.Bytes())
		for _, want := range frames {
			got, err := Read(&b)
			if err != nil || got.Stream != want.Stream || got.Kind != want.Kind || !bytes.Equal(got.Payload, want.Payload) {
				t.Fatalf("%+v came back as %+v: %v", want, got, err)
			}
		}
		if _, err := Read(&b); !errors.Is(err, io.EOF) {
			t.Fatalf("behind the last frame: %v", err)
		}
		if len(whole) > 0 {
			cut := bytes.NewReader(whole[:len(whole)-1])
			var err error
			for err == nil {
				_, err = Read(cut)
			}
			if errors.Is(err, io.EOF) {
				t.Fatal("a frame that was cut off is taken for the end")
			}
		}
	})
}

func TestTooMuchForOneFrame(t *testing.T) {
	if err := Write(io.Discard, Frame{Kind: Data, Payload: make([]byte, MaxPayload+1)}); err == nil {
		t.Error("written")
	}
	if _, err := Read(bytes.NewReader([]byte{0, 0, 0, 1, byte(Data), 0xff, 0xff, 0xff, 0xff})); err == nil {
		t.Error("read")
	}
}
