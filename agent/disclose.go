package agent

import (
	"regexp"
	"strings"
)

// Where the stores, the sockets and the folders of this host are is nobody's business who
// only uses it. What a sentence is about comes first in it, and where last: each part of
// it, up to the next ": ", is wrapped by those in front.

// somewhere is the beginning of something that says where: a URL, an absolute path, an IP
// address, a host with its port, or what Go says of a connection.
var somewhere = regexp.MustCompile(`[A-Za-z][A-Za-z0-9+.-]*:/` + // a URL
	`|(?:^|[^A-Za-z0-9_.])/[^\s/]` + // a path
	`|\b\d{1,3}(?:\.\d{1,3}){3}\b|\[[0-9A-Fa-f]*:[0-9A-Fa-f:.]*(?:%\w+)?\]` + // an IP address
	`|\b[A-Za-z][A-Za-z0-9.-]*:\d{1,5}\b` + // a host and a port
	`|\b(?:dial|read|write) (?:tcp|udp|unix)\b|\blookup `)

// partEnd is between two parts.
var partEnd = regexp.MustCompile(`: |; |\n`)

// Of a sentence that begins with a place, the words in front of it, and those that are
// then too many at their end.
const (
	leastWords   = 3
	placeWords   = " a an at by file folder from in is of on socket store the to with "
	onlyOperator = "the service failed, and its operator can see why"
)

// withoutPlaces is as much of a sentence as may be shown to who uses the API: the parts in
// front of the first place, all that follows is left out, as a path may have any
// characters in it.
func withoutPlaces(text string) string {
	at := somewhere.FindStringIndex(text)
	if at == nil {
		return text
	}
	head := text[:at[0]]
	if ends := partEnd.FindAllStringIndex(head+" ", -1); len(ends) > 0 {
		head = head[:ends[len(ends)-1][0]]
		if !strings.Contains(head, " ") { // the name of a part of the program
			return onlyOperator
		}
	} else if head = firstWords(head); head == "" {
		return onlyOperator
	}
	head += strings.Repeat(")", max(0, strings.Count(head, "(")-strings.Count(head, ")")))
	return head + " (the operator of the service can see more)"
}

// firstWords are the words in front of a place without those that lead to it; "" if too
// few are left to say anything.
func firstWords(head string) string {
	words := strings.Fields(head)
	for len(words) > 0 && strings.Contains(placeWords, " "+words[len(words)-1]+" ") {
		words = words[:len(words)-1]
	}
	if len(words) < leastWords {
		return ""
	}
	return strings.Join(words, " ")
}
