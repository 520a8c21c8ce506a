#!/bin/sh
# Stands in for runc, and takes the limits out of a container's specification.
set -eu
before=
for argument; do
	if [ "$before" = --bundle ]; then
		sed -i -E 's/"(cpu|memory|pids)":\{[^{}]*\}/"\1":{}/g' "$argument/config.json"
	fi
	before=$argument
done
exec runc "$@"
