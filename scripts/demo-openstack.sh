#!/usr/bin/env bash
# The OpenStack Block Storage backup service on this machine: demo-openstack.sh
# PATH/TO/cairn (see "make demo-openstack"). Starts an agent with the API, a project
# and two users, and says which variables to set and which commands to try; all is
# gone when it is interrupted. CAIRN_DEMO_PORT chooses the port.
set -euo pipefail
cairn=$(realpath "${1:?usage: demo-openstack.sh PATH/TO/cairn}")
port=${CAIRN_DEMO_PORT:-8776}

# shellcheck source=scripts/demohost.sh
. "$(dirname "$0")/demohost.sh"

password() { head -c 12 /dev/urandom | od -An -tx1 | tr -d ' \n'; }
(umask 077 && password >"$work/user.pw" && password >"$work/admin.pw")
"$cairn" project create demo >/dev/null
"$cairn" user create demo --project demo --password-file "$work/user.pw" >/dev/null
"$cairn" user create admin --project demo --admin --password-file "$work/admin.pw" >/dev/null

"$cairn" agent --init --api-listen "127.0.0.1:$port" >"$work/agent.log" 2>&1 &
agent_pid=$!
for _ in $(seq 300); do
	"$cairn" status >/dev/null 2>&1 && break
	kill -0 "$agent_pid" 2>/dev/null || exit 1
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
wait "$agent_pid"
