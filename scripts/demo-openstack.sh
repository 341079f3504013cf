#!/usr/bin/env bash
# The OpenStack Block Storage backup service on this machine: demo-openstack.sh
# PATH/TO/cairn (see "make demo-openstack"). Starts an agent with the API, a project
# and two users, and says which variables to set and which commands to try; all is
# gone when it is interrupted. CAIRN_DEMO_PORT chooses the port.
set -euo pipefail
cairn=$(realpath "${1:?usage: demo-openstack.sh PATH/TO/cairn}")
port=${CAIRN_DEMO_PORT:-8776}

work=$(mktemp -d "${TMPDIR:-/tmp}/cairn-demo.XXXXXX")
run=$(mktemp -d /tmp/cairn-run.XXXXXX) # sockets: their paths must be short
export CAIRN_STATE=$work/state CAIRN_SOCKET=$run/agent.sock CAIRN_CONTROL=$run/serve.sock CAIRN_NBD_DIR=$run/nbd
agent=''

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
	end_process "$agent"
	# The data plane outlives the agent on purpose; its number is in its lock.
	if [ -s "$CAIRN_STATE/serve.lock" ]; then
		pid=$(tr -dc 0-9 <"$CAIRN_STATE/serve.lock")
		if [ -n "$pid" ] && grep -qa "$work" "/proc/$pid/cmdline" 2>/dev/null; then
			end_process "$pid"
		fi
	fi
	if [ $code != 0 ] && [ $code != 130 ] && [ -s "$work/agent.log" ]; then
		echo "--- the end of agent.log"
		tail -n 15 "$work/agent.log"
	fi
	rm -rf --one-file-system "$work" "$run"
	exit $code
}
trap cleanup EXIT
trap 'exit 130' INT TERM

password() { head -c 12 /dev/urandom | od -An -tx1 | tr -d ' \n'; }
(umask 077 && password >"$work/user.pw" && password >"$work/admin.pw")
"$cairn" project create demo >/dev/null
"$cairn" user create demo --project demo --password-file "$work/user.pw" >/dev/null
"$cairn" user create admin --project demo --admin --password-file "$work/admin.pw" >/dev/null

"$cairn" agent --init --api-listen "127.0.0.1:$port" >"$work/agent.log" 2>&1 &
agent=$!
for _ in $(seq 300); do
	"$cairn" status >/dev/null 2>&1 && break
	kill -0 "$agent" 2>/dev/null || exit 1
	sleep 0.1
done

cat <<EOF
An agent serves the Block Storage API on http://127.0.0.1:$port, with six local folders as
stores (any four restore everything). In another shell:

  export OS_AUTH_URL=http://127.0.0.1:$port/identity/v3 OS_IDENTITY_API_VERSION=3
  export OS_USERNAME=demo OS_PASSWORD=$(cat "$work/user.pw") OS_PROJECT_NAME=demo
  export OS_USER_DOMAIN_NAME=Default OS_PROJECT_DOMAIN_NAME=Default

  openstack volume create --size 1 disk
  cinder backup-create disk --name monday
  cinder backup-list
  cinder backup-create disk --incremental --name tuesday
  cinder backup-restore tuesday
  cinder list

What the guest writes goes through NBD, for example:

  export CAIRN_SOCKET=$CAIRN_SOCKET
  $cairn volume list
  qemu-io -f raw -c 'write -P 7 0 64M' "\$($cairn volume list -o json | sed -n 's/^ *"uri": "\(.*\)",\$/\1/p' | head -n 1)"

As administrator (quotas, records, states of backups, services):

  export OS_USERNAME=admin OS_PASSWORD=$(cat "$work/admin.pw")
  cinder quota-usage \$(openstack project show demo -f value -c id)
  cinder backup-export monday
  cinder service-list

The clients are the Debian packages python3-cinderclient and python3-openstackclient.
Interrupt this command (Ctrl-C) to end the agent and remove everything.
EOF
if [ -n "${CAIRN_DEMO_ONCE:-}" ]; then # for tests: what was said is enough
	exit 0
fi
wait "$agent"
