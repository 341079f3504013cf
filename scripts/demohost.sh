# For the demos, which source it: a host in folders of its own, $work and $run, that
# leaves nothing behind. The log files are in $work; those in $logs are shown when it
# ends badly.
# shellcheck shell=bash
work=$(mktemp -d "${TMPDIR:-/tmp}/cairn-demo.XXXXXX")
run=$(mktemp -d /tmp/cairn-run.XXXXXX) # sockets: their paths must be short
export CAIRN_STATE=$work/state CAIRN_SOCKET=$run/agent.sock CAIRN_CONTROL=$run/serve.sock CAIRN_NBD_DIR=$run/nbd
agent_pid='' mount_pid='' logs="agent.log state/serve.log"

end_process() { # PID: asks, waits, and kills what does not listen
	[ -n "$1" ] && kill -TERM "$1" 2>/dev/null || return 0
	for _ in $(seq 100); do
		kill -0 "$1" 2>/dev/null || return 0
		sleep 0.1
	done
	kill -KILL "$1" 2>/dev/null || true
}

cleanup() {
	code=$?
	trap - EXIT
	end_process "$mount_pid"
	end_process "$agent_pid"
	# The data plane outlives the agent on purpose; its number is in its lock.
	if [ -s "$CAIRN_STATE/serve.lock" ]; then
		pid=$(tr -dc 0-9 <"$CAIRN_STATE/serve.lock")
		if [ -n "$pid" ] && grep -qa "$work" "/proc/$pid/cmdline" 2>/dev/null; then
			end_process "$pid"
		fi
	fi
	if [ $code != 0 ] && [ $code != 130 ]; then
		for log in $logs; do
			[ -s "$work/$log" ] && { echo "--- the end of $log"; tail -n 15 "$work/$log"; }
		done
	fi
	rm -rf --one-file-system "$work" "$run"
	exit $code
}
trap cleanup EXIT
trap 'exit 130' INT TERM
