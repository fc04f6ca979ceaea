#!/bin/sh
# A stand-in for the supervisor, for the tests of drivers: it ends when it is asked to, and until then it has what
# a supervisor has below it: a command, and a daemon in a session of its own whose parent has gone.
#
# usage: fake_supervisor.sh --config FILE
set -u
[ "$1" = --config ] && [ -r "$2" ] || exit 78
trap 'echo "asked to end"; exit 0' TERM
echo "fake supervisor, process $$"

sleep 86400 &
# `exec` in a subshell that ends: the daemon is an orphan from the start.
( setsid sh -c 'sleep 86400; :' & )

# A test can have it end by itself.
while :; do
    wait
done
