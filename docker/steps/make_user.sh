#!/bin/sh
# Create the user that runs the server, without password and shell: make_user.sh NAME UID
set -eu
name=$1 uid=$2
if ! id "$name" >/dev/null 2>&1; then
    useradd --uid "$uid" --no-create-home --home-dir /nonexistent --shell /usr/sbin/nologin "$name"
fi
id "$name"
