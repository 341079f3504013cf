// Package e2e holds the tests over the whole of Cairn: real processes killed
// at random while a guest writes (kill_test.go), and a simulated power failure
// over all files of a host at once (powerloss_test.go), and the budgets of time-
// independent resources (budget_test.go), and the main job on S3 servers (s3_test.go), and
// the stock OpenStack clients, with built-in users (openstack_test.go) and with those of a
// real Keystone (keystone_test.go), and several hosts on a network that fails
// (hosts_test.go), and a real guest that runs from a volume (bootguest_test.go), and
// one that is a host and loses power (guestloss_test.go), and one whose qemu is backed up
// from (pullguest_test.go). It has no code of its own.
package e2e
