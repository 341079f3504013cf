package cinderapi

import (
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
)

// long is one character more than a name may have. It has several bytes each.
var long = strings.Repeat("ü", 256)

// badBodies are bodies that are refused: METHOD path, the microversion, the body,
// the status and a part of what is told. V is a volume, B a backup.
var badBodies = []struct {
	call, version, body string
	status              int
	text                string
}{
	{"POST /backups", "", ``, 400, "Missing request body"},
	{"POST /backups", "", `{`, 400, "Malformed request body"},
	{"POST /backups", "", `{"backup":{"volume_id":"V"}} {}`, 400, "Malformed request body"},
	{"POST /backups", "", "{\"backup\":{\"volume_id\":\"V\",\"name\":\"\xff\"}}", 400, "Malformed request body"},
	{"POST /backups", "", `{"backup":{"volume_id":"V","name":NaN}}`, 400, "Malformed request body"},
	{"POST /backups", "", `{"backup":` + strings.Repeat(`[`, 5000) + strings.Repeat(`]`, 5000) + `}`, 400, "Malformed request body"},
	{"POST /backups", "", strings.Repeat(" ", maxBody+1), 413, "Request is too large."},
	{"POST /backups", "", `[]`, 400, "[] is not of type 'object'"},
	{"POST /backups", "", `null`, 400, "None is not of type 'object'"},
	{"POST /backups", "", `{}`, 400, "'backup' is a required property"},
	{"POST /backups", "", `{"backup":null}`, 400, "Invalid input for field/attribute backup. Value: None. None is not of type 'object'"},
	{"POST /backups", "", `{"backup":{}}`, 400, "Invalid input for field/attribute backup. Value: {}. 'volume_id' is a required property"},
	{"POST /backups", "", `{"backup":{"volume_id":"V"},"more":1}`, 400, "Additional properties are not allowed ('more' was unexpected)"},
	{"POST /backups", "", `{"backup":{"volume_id":"V","a":1,"b'":2}}`, 400, `Additional properties are not allowed ('a', "b'" were unexpected)`},
	{"POST /backups", "", `{"backup":{"volume_id":"x"}}`, 400, "Invalid input for field/attribute volume_id. Value: x. 'x' is not a 'uuid'"},
	{"POST /backups", "", `{"backup":{"volume_id":"{01234567-89ab-cdef-0123-456789abcdef)"}}`, 400, "is not a 'uuid'"},
	{"POST /backups", "", `{"backup":{"volume_id":null}}`, 400, "Value: None. None is not of type 'string'"},
	{"POST /backups", "", `{"backup":{"volume_id":7}}`, 400, "Value: 7. 7 is not of type 'string'"},
	{"POST /backups", "", `{"backup":{"volume_id":"V","snapshot_id":"s"}}`, 400, "field/attribute snapshot_id. Value: s."},
	{"POST /backups", "", `{"backup":{"volume_id":"V","name":"` + long + `"}}`, 400, "is too long"},
	{"POST /backups", "", `{"backup":{"volume_id":"V","container":"` + long + `"}}`, 400, "field/attribute container."},
	{"POST /backups", "", `{"backup":{"volume_id":"V","name":["a"]}}`, 400, "Value: ['a']. ['a'] is not of type 'string', 'null'"},
	{"POST /backups", "", `{"backup":{"volume_id":"V","name":"a\u0000b"}}`, 400, "has a NUL character"},
	{"POST /backups", "", `{"backup":{"volume_id":"V","description":"a\nb"}}`, 400, `Value: a` + "\n" + `b. 'a\nb' does not match`},
	{"POST /backups", "", `{"backup":{"volume_id":"V","force":"maybe"}}`, 400, "'maybe' is not one of [True, 'True', 'TRUE'"},
	{"POST /backups", "", `{"backup":{"volume_id":"V","force":1}}`, 400, "1 is not of type 'boolean', 'string'"},
	{"POST /backups", "", `{"backup":{"volume_id":"V","incremental":null}}`, 400, "None is not of type 'boolean', 'string'"},
	{"POST /backups", "3.42", `{"backup":{"volume_id":"V","metadata":{}}}`, 400, "('metadata' was unexpected)"},
	{"POST /backups", "3.50", `{"backup":{"volume_id":"V","availability_zone":"nova"}}`, 400, "('availability_zone' was unexpected)"},
	{"POST /backups", "3.51", `{"backup":{"volume_id":"V","availability_zone":"mars"}}`, 503, "mars"},
	{"POST /backups", "3.43", `{"backup":{"volume_id":"V","metadata":{"a":1}}}`, 400, "Invalid input for field/attribute a. Value: 1. 1 is not of type 'string'"},
	{"POST /backups", "3.43", `{"backup":{"volume_id":"V","metadata":{"ä":"1"}}}`, 400, "Additional properties are not allowed ('ä' was unexpected)"},
	{"PUT /backups/B", "3.8", `{"backup":{"name":"n"}}`, 404, "The resource could not be found."},
	{"PUT /backups/B", "3.9", `{"backup":null}`, 400, "Must specify body parameters"},
	{"PUT /backups/B", "3.9", `{"backup":{"metadata":{}}}`, 400, "('metadata' was unexpected)"},
	{"POST /backups/B/restore", "", `{}`, 400, "'restore' is a required property"},
	{"POST /backups/B/restore", "", `{"restore":{"volume_id":"x"}}`, 400, "field/attribute volume_id. Value: x."},
	{"POST /backups/B/restore", "", `{"restore":{"force":true}}`, 400, "('force' was unexpected)"},
	{"POST /backups/import_record", "", `{"backup-record":{"backup_service":"s"}}`, 400, "'backup_url' is a required property"},
	{"POST /backups/import_record", "", `{"backup-record":{"backup_service":"s","backup_url":"***"}}`, 400, "'***' is not a 'base64'"},
	{"POST /backups/import_record", "", `{"backup-record":{"backup_service":"s","backup_url":""}}`, 400, "'' is too short"},
	{"POST /backups/import_record", "", `{"backup-record":{"backup_service":"s","backup_url":"AAAA"}}`, 400, "Can't parse backup record."},
	{"POST /backups/B/action", "", `{"os-fly":{}}`, 400, "There is no such action: os-fly. Verify the request body and Content-Type header and try again."},
	{"POST /backups/B/action", "", `{"a":1,"b":2}`, 400, "Malformed request body"},
	{"POST /backups/B/action", "", `{"os-reset_status":{"status":"restoring"}}`, 400, "Backup status: restoring is invalid, valid statuses are: ['available', 'error']."},
	{"POST /backups/B/action", "", `{"os-reset_status":{}}`, 400, "'status' is a required property"},
	{"POST /backups/B/action", "", `{"os-reset_status":null}`, 400, "None is not of type 'object'"},
	{"POST /volumes", "", `{"volume":{}}`, 400, "Invalid volume size provided for create request: None"},
	{"POST /volumes", "", `{"volume":{"size":0}}`, 400, "0 is less than the minimum of 1"},
	{"POST /volumes", "", `{"volume":{"size":"-1"}}`, 400, "'-1' does not match '^[0-9]+$'"},
	{"POST /volumes", "", `{"volume":{"size":1.5}}`, 400, "1.5 is not of type 'integer', 'string', 'null'"},
	{"POST /volumes", "", `{"volume":{"size":99999999999999999999999}}`, 400, "is greater than the maximum of 2147483647"},
	{"POST /volumes", "", `{"volume":{"size":1e400}}`, 400, "1e400 is not of type"},
	{"POST /volumes", "", `{"volume":{"size":1,"volume_type":"gold"}}`, 404, "Volume type gold could not be found."},
	{"POST /volumes", "", `{"volume":{"size":1,"imageRef":"cirros"}}`, 400, "Invalid image identifier"},
	{"POST /volumes", "", `{"volume":{"size":1,"multiattach":true}}`, 400, "multiattach"},
	{"POST /volumes", "", `{"volume":{"size":1,"availability_zone":"mars"}}`, 400, "Availability zone 'mars' is invalid."},
	{"POST /volumes", "3.13", `{"volume":{"size":1,"group_id":"g"}}`, 404, "Group g could not be found."},
	{"POST /volumes", "3.53", `{"volume":{"size":1,"user_id":"u"}}`, 400, "('user_id' was unexpected)"},
	{"POST /volumes", "3.53", `{"volume":{"size":1,"source_volid":"V","backup_id":"B"}}`, 400, "name one of them"},
	{"PUT /volumes/V", "3.53", `{"volume":{}}`, 400, "is not valid under any of the given schemas"},
	{"PUT /volumes/V/metadata", "", `{"metadata":null}`, 400, "None is not of type 'object'"},
	{"PUT /volumes/V/metadata/a", "", `{"meta":{"b":"1"}}`, 400, "Request body and URI mismatch"},
	{"PUT /volumes/V/metadata/a", "", `{"meta":{"a":"1","b":"1"}}`, 400, "has too many properties"},
	{"DELETE /volumes/V/metadata/a", "", ``, 404, "Metadata item was not found"},
	{"GET /volumes/V/metadata/a", "", ``, 404, "Metadata item was not found"},
	{"POST /volumes/V/action", "", `{"os-extend":{"new_size":"x"}}`, 400, "'x' does not match"},
	{"POST /volumes/V/action", "", `{"os-extend":{"new_size":2}}`, 400, "New size for extend must be greater"},
	{"POST /volumes/V/action", "", `{"os-reset_status":{}}`, 400, "Must specify 'status', 'attach_status' or 'migration_status' for update."},
	{"POST /volumes/V/action", "", `{"os-reset_status":{"status":"flying"}}`, 400, "Volume status: flying is invalid"},
	{"POST /volumes/V/action", "", `{"os-reset_status":{"attach_status":"detached"}}`, 400, "Only 'status' can be set"},
	{"DELETE /volumes/V?cascade=perhaps", "", ``, 400, "cascade"},
	{"POST /snapshots", "", `{"snapshot":{}}`, 400, "'volume_id' is a required property"},
	{"POST /snapshots", "3.66", `{"snapshot":{"volume_id":"V","force":false}}`, 400, "Invalid input for field/attribute force. Value: False. Since microversion 3.66"},
	{"PUT /os-quota-sets/p", "", `{"quota_set":{}}`, 400, "does not have enough properties"},
	{"PUT /os-quota-sets/p", "", `{"quota_set":{"backups":-2}}`, 400, "backups must be >= -1"},
	{"PUT /os-quota-sets/p", "", `{"quota_set":{"backups":1.5}}`, 400, "backups must be an integer."},
	{"PUT /os-quota-sets/p", "", `{"quota_set":{"backups":null}}`, 400, "backups must be an integer."},
	{"PUT /os-quota-sets/p", "", `{"quota_set":{"backups":4294967296}}`, 400, "backups must be <= 2147483647"},
	{"PUT /os-quota-sets/p", "", `{"quota_set":{"apples":1}}`, 400, "Bad key(s) in quota set: apples"},
	{"PUT /os-quota-sets/" + projectA + "?skip_validation=False", "", `{"quota_set":{"backups":0}}`, 400, "Current usage is 1 and the requested limit is 0."},
	{"GET /backups?limit=x", "", ``, 400, "limit param must be an integer"},
	{"GET /backups?limit=-1", "", ``, 400, "limit param must be positive"},
	{"GET /backups?offset=-1", "", ``, 400, "offset must be >= 0"},
	{"GET /backups?offset=9999999999", "", ``, 400, "offset must be <= 2147483647"},
	{"GET /backups?sort=name:up", "", ``, 400, "Unknown sort direction"},
	{"GET /backups?sort=hue", "", ``, 400, "Sort key supplied is invalid: hue"},
	{"GET /backups?sort=name&sort_key=id", "", ``, 400, "are deprecated"},
	{"GET /backups?marker=x", "", ``, 404, "Backup x could not be found."},
	{"GET /backups?with_count=x", "3.45", ``, 400, "with_count"},
	{"GET /backups?hue=red", "3.31", ``, 400, "Invalid filters hue are found in query options."},
	{"GET /backups?name~=o", "3.33", ``, 400, "Invalid filters name~"},
	{"GET /volumes?bootable=x", "3.2", ``, 400, "bootable={x}"},
	{"GET /volumes?metadata=x", "", ``, 400, "metadata=x"},
	{"GET /volumes?created_at=gt:x", "3.60", ``, 400, "ISO 8601"},
}

func TestBadBodies(t *testing.T) {
	s := newServer(t)
	vol := s.newVolume(t, "root", "db")
	b := s.newBackup(t, "root", vol, "one")
	ids := strings.NewReplacer("/V", "/"+vol, `"V"`, `"`+vol+`"`, "/B", "/"+b, `"B"`, `"`+b+`"`)
	before := s.state()
	for _, tt := range badBodies {
		method, path, _ := strings.Cut(tt.call, " ")
		got := s.as(t, "root", tt.version, method, ids.Replace(path), ids.Replace(tt.body))
		if text := got.fault(t, tt.status); !strings.Contains(text, tt.text) || len(text) > 5000 {
			t.Errorf("%s %s at %q: %q, want %q", tt.call, clip(tt.body), tt.version, text, tt.text)
		}
	}
	if s.state() != before {
		t.Error("a refused request changed something")
	}
}

func TestContentType(t *testing.T) {
	s := newServer(t)
	for media, status := range map[string]int{
		"": 202, "application/json": 202, "application/json; charset=utf-8": 202, "application/vnd.openstack.volume+json": 202,
		"application/xml": 415, "text/plain": 415, ";": 415,
	} {
		r := httptest.NewRequestWithContext(t.Context(), http.MethodPost, "/volume/v3/volumes", strings.NewReader(`{"volume":{"size":1}}`))
		r.Header.Set("X-Auth-Token", "alice")
		if media != "" {
			r.Header.Set("Content-Type", media)
		}
		if got := s.do(t, r); got.status != status {
			t.Errorf("%q: %d %s, want %d", media, got.status, got.raw, status)
		}
	}
}

// TestLooseForms has values in all forms that Cinder takes.
func TestLooseForms(t *testing.T) {
	s := newServer(t)
	vol := s.newVolume(t, "alice", "db")
	if err := s.ResetVolume(t.Context(), vol, "in-use"); err != nil {
		t.Fatal(err)
	}
	for _, w := range booleans() {
		status := 400
		if b, isBool := w.(bool); isBool && b || !isBool && (fields{"w": w}).truth("w") {
			status = 202
		}
		literal := repr(w)
		if b, isBool := w.(bool); isBool {
			literal = word(b)
		}
		body := strings.ReplaceAll(`{"backup":{"volume_id":"`+strings.ToUpper(vol)+`","force":`+literal+`}}`, "'", `"`)
		if got := s.as(t, "alice", "", "POST", "/backups", body); got.status != status {
			t.Errorf("force %v: %d %s, want %d", w, got.status, got.raw, status)
		}
		s.backups = map[string]Backup{} // below the quota
	}
	v := s.as(t, "alice", "", "POST", "/volumes", `{"volume":{"size":"3","display_name":" a b ","metadata":null,"snapshot_id":null,"user_id":"x"},"OS-SCH-HNT:scheduler_hints":{"k":1}}`).want(t, 202, "volume")
	if v["name"] != "a b" || v["size"] != 3.0 {
		t.Errorf("volume %v", v)
	}
}
