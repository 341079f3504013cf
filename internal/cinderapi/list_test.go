package cinderapi

import (
	"cmp"
	"fmt"
	"net/http/httptest"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"
	"pgregory.net/rapid"
)

// fill makes n backups of alice's, with names b-0 and so on, two of each time.
func (m *memory) fill(n int) {
	at := time.Date(2026, 3, 1, 0, 0, 0, 0, time.UTC)
	for i := range n {
		b := Backup{
			ID: uuid.NewSHA1(uuid.NameSpaceOID, fmt.Append(nil, i)).String(), Project: projectA, Name: fmt.Sprint("b-", i), Status: "available",
			VolumeID: typeID, Size: int64(i % 3), Created: at.Add(time.Duration(i/2) * time.Minute), Metadata: map[string]string{"k": "v"},
		}
		if i%5 == 0 {
			b.Status = "error"
		}
		m.backups[b.ID] = b
	}
}

// model is what a list of backups has to be, by the keys of the property test.
func (m *memory) model(key string, desc bool, status string) []string {
	var bs []Backup
	for _, b := range m.backups {
		if status == "" || b.Status == status {
			bs = append(bs, b)
		}
	}
	slices.SortFunc(bs, func(a, b Backup) int {
		n := map[string]int{
			"name": strings.Compare(a.Name, b.Name), "size": cmp.Compare(a.Size, b.Size), "status": strings.Compare(a.Status, b.Status),
		}[key]
		if n == 0 && key != "id" {
			n = a.Created.Compare(b.Created)
		}
		if n == 0 {
			n = strings.Compare(a.ID, b.ID)
		}
		if desc {
			return -n
		}
		return n
	})
	ids := make([]string, len(bs))
	for i, b := range bs {
		ids[i] = b.ID
	}
	return ids
}

// TestPages walks a list by its next links and compares it with the model: no
// backup is left out, none comes twice, whatever the order, the filter and the
// size of the pages.
func TestPages(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		s := newServer(t)
		s.fill(rapid.IntRange(0, 40).Draw(rt, "backups"))
		key := rapid.SampledFrom([]string{"created_at", "id", "name", "size", "status"}).Draw(rt, "key")
		dir := rapid.SampledFrom([]string{"asc", "desc", ""}).Draw(rt, "dir")
		status := rapid.SampledFrom([]string{"", "error", "available", "creating"}).Draw(rt, "status")
		limit := rapid.IntRange(1, 12).Draw(rt, "limit")
		offset := rapid.IntRange(0, 8).Draw(rt, "offset")
		want := s.model(key, dir != "asc", status)

		q := url.Values{"sort": {strings.TrimSuffix(key+":"+dir, ":")}, "limit": {strconv.Itoa(limit)}, "offset": {strconv.Itoa(offset)}, "with_count": {"1"}}
		if rapid.Bool().Draw(rt, "old") && dir != "" {
			q.Del("sort")
			q.Set("sort_key", key)
			q.Set("sort_dir", dir)
		}
		if status != "" {
			q.Set("status", status)
		}
		count := len(want)
		want = want[min(offset, len(want)):]
		next := "/volume/v3/" + projectA + "/backups?" + q.Encode()
		var got []string
		for pages := 0; next != ""; pages++ {
			if pages > count {
				rt.Fatalf("no end: %s", next)
			}
			r := s.send(t, "alice", "3.45", "GET", next, "")
			items := r.list(t, "backups")
			for _, o := range items {
				got = append(got, str(o, "id"))
			}
			if r.body["count"] != float64(count) {
				rt.Fatalf("count %v, want %d", r.body["count"], count)
			}
			next = r.next("backups")
			if (next != "") != (len(got) < len(want)) || len(items) > limit {
				rt.Fatalf("%d of %d, %d in a page of %d, next %q", len(got), len(want), len(items), limit, next)
			}
		}
		if !slices.Equal(got, want) {
			rt.Fatalf("got %v\nwant %v", got, want)
		}
	})
}

// next is the link to the next page, "" without.
func (r reply) next(plural string) string {
	links, ok := r.body[plural+"_links"].([]any)
	if !ok || len(links) != 1 {
		return ""
	}
	o, ok := links[0].(map[string]any)
	if !ok || o["rel"] != "next" {
		return ""
	}
	return str(o, "href")
}

func TestPageLimits(t *testing.T) {
	s := newServer(t)
	s.fill(maxPage + 1)
	for query, want := range map[string]int{"": maxPage, "?limit=5000": maxPage, "?limit=0": 0, "?limit=1": 1, "?offset=1000": 1, "?offset=2147483647": 0} {
		got := s.as(t, "alice", "3.70", "GET", "/backups/detail"+query, "")
		if n := len(got.list(t, "backups")); n != want {
			t.Errorf("%q: %d, want %d", query, n, want)
		}
		if next := got.next("backups"); (next != "") != (want == maxPage || want == 1 && query == "?limit=1") {
			t.Errorf("%q: next %q", query, next)
		} else if next != "" && !strings.HasPrefix(next, "https://cloud.example:8776/volume/v3/"+projectA+"/backups/detail?") {
			t.Errorf("%q: next %q", query, next)
		}
		if _, there := got.body["count"]; there {
			t.Errorf("%q: counted unasked", query)
		}
	}
	if _, there := s.as(t, "alice", "3.44", "GET", "/backups?with_count=1", "").body["count"]; there {
		t.Error("counted before 3.45")
	}
}

// TestMarkerOutsideOfFilter has a marker that the filter leaves out.
func TestMarkerOutsideOfFilter(t *testing.T) {
	s := newServer(t)
	s.fill(10)
	marker := s.model("name", false, "")[5] // b-5, an error
	got := s.as(t, "alice", "", "GET", "/backups?sort=name:asc&status=available&marker="+strings.ToUpper(marker), "").list(t, "backups")
	var names []string
	for _, o := range got {
		names = append(names, str(o, "name"))
	}
	if strings.Join(names, " ") != "b-6 b-7 b-8 b-9" {
		t.Error(names)
	}
}

func TestFilters(t *testing.T) {
	s := newServer(t)
	vol, snap, _ := s.things(t)
	s.newVolume(t, "alice", "DB-old")
	for _, tt := range []struct {
		version, list string
		want          int
	}{
		{"", "backups?name=one", 1},
		{"", "backups?name=on", 0},
		{"", "backups?volume_id=" + vol, 1},
		{"", "backups?volume_id=x", 0},
		{"3.34", "backups?name~=ON", 1},
		{"3.34", "backups?status~=avail", 1},
		{"3.33", "backups?status=error", 0},
		{"", "backups?name~=zzz", 1},
		{"", "snapshots?volume_id=" + vol, 1},
		{"", "snapshots?name=snap&status=available", 1},
		{"", "snapshots?id=" + snap, 1},
		{"", "snapshots?metadata=" + url.QueryEscape(`{'a': '1'}`), 1},
		{"", "snapshots?metadata=" + url.QueryEscape(`{"a":"2"}`), 0},
		{"", "volumes?name=db", 1},
		{"3.34", "volumes?name~=db", 2},
		{"", "volumes?size=2", 2},
		{"", "volumes?size=x", 0},
		{"", "volumes?bootable=false", 2},
		{"", "volumes?bootable=anything", 0},
		{"3.2", "volumes?bootable=F", 2},
		{"3.2", "volumes?bootable=1", 0},
		{"", "volumes?metadata=" + url.QueryEscape(`{u'a': u'1'}`), 1},
		{"", "volumes?metadata={}", 2},
		{"", "volumes?availability_zone=nova", 2},
		{"", "volumes?availability_zone=mars", 0},
		{"", "volumes?migration_status=x", 0},
		{"3.60", "volumes?created_at=gt:2026-01-01", 2},
		{"3.60", "volumes?created_at=lt:2026-01-01T00:00:00", 0},
		{"3.60", "volumes?created_at=gte:2026-01-01,lt:2027-01-01", 2},
		{"3.59", "volumes?name=db", 1},
		{"", "volumes?created_at=lt:2000-01-01", 2},
		{"3.65", "volumes?consumes_quota=true", 2},
		{"3.65", "snapshots?consumes_quota=false", 0},
		{"", "volumes?glance_metadata=x&hue=red", 2},
	} {
		plural, _, _ := strings.Cut(tt.list, "?")
		if got := s.as(t, "alice", tt.version, "GET", "/"+tt.list, "").list(t, plural); len(got) != tt.want {
			t.Errorf("%s at %q: %d, want %d", tt.list, tt.version, len(got), tt.want)
		}
	}
}

// BenchmarkList1000 lists a whole page in all detail.
func BenchmarkList1000(b *testing.B) {
	s := newServer(b)
	s.fill(maxPage)
	r := httptest.NewRequestWithContext(b.Context(), "GET", "/volume/v3/backups/detail", nil)
	r.Header.Set("X-Auth-Token", "root")
	r.Header.Set("OpenStack-API-Version", "volume 3.70")
	for b.Loop() {
		w := httptest.NewRecorder()
		if s.handler.ServeHTTP(w, r); w.Code != 200 {
			b.Fatal(w.Body)
		}
	}
}
