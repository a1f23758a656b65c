#!/bin/sh
# The user that serves, with no password and no shell: make_user.sh NAME UID
set -eu
name=$1 uid=$2
if ! id "$name" >/dev/null 2>&1; then
    useradd --uid "$uid" --no-create-home --home-dir /nonexistent --shell /usr/sbin/nologin "$name"
fi
id "$name"
