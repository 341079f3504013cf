//go:build race

package nbd

// raceDetector makes the loop use calls that the race detector knows to order what
// is done on both sides of a socket.
const raceDetector = true
