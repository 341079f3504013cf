package cinderapi

import (
	"fmt"
	"net/http"
	"regexp"
	"strconv"
	"strings"
)

// The microversions that are spoken, 3.minMinor to 3.maxMinor.
const (
	minMinor = 0
	maxMinor = 70
)

// versionHeader asks for a microversion, and says which one an answer has.
const versionHeader = "OpenStack-Api-Version"

// minor is a microversion, 3.minor.
type minor int

// String returns it as "3.70".
func (m minor) String() string { return "3." + strconv.Itoa(int(m)) }

var versionForm = regexp.MustCompile(`^([1-9][0-9]*)\.([1-9][0-9]*|0)$`)

// askedVersion is the microversion that a request asks for: "volume 3.70",
// "volume latest", among those of other services if need be; without any, 3.0.
func askedVersion(h http.Header) (minor, error) {
	for entry := range strings.SplitSeq(strings.Join(h.Values(versionHeader), ","), ",") {
		service, version, _ := strings.Cut(strings.TrimSpace(entry), " ")
		if service != "volume" {
			continue
		}
		version = strings.TrimSpace(version)
		if version == "latest" {
			return maxMinor, nil
		}
		parts := versionForm.FindStringSubmatch(version)
		if parts == nil {
			return 0, Invalid("API Version String %s is of invalid format. Must be of format MajorNum.MinorNum.", clip(version))
		}
		n, err := strconv.Atoi(parts[2])
		if err != nil || parts[1] != "3" || n > maxMinor {
			return 0, &Fault{http.StatusNotAcceptable, fmt.Sprintf("Version %s is not supported by the API. Minimum is %v and maximum is %v.", clip(version), minor(minMinor), minor(maxMinor))}
		}
		return minor(n), nil
	}
	return minMinor, nil
}

// versions is the document that says which versions there are, at base.
func versions(base string) object {
	return object{"versions": []object{{
		"id": "v3.0", "status": "CURRENT", "version": minor(maxMinor).String(), "min_version": minor(minMinor).String(),
		"updated": "2022-04-20T00:00:00Z",
		"links": []object{
			{"rel": "describedby", "type": "text/html", "href": "https://docs.openstack.org/"},
			{"rel": "self", "href": base + "/volume/v3/"},
		},
		"media-types": []object{{"base": "application/json", "type": "application/vnd.openstack.volume+json;version=3"}},
	}}}
}

// imageVersions is the document of an image service that has nothing but this
// document: without one, "openstack volume create" stops before its request.
func imageVersions(base string) object {
	return object{"versions": []object{{
		"id": "v2.0", "status": "CURRENT",
		"links": []object{{"rel": "self", "href": base + "/image/v2/"}},
	}}}
}
