#!/usr/bin/env bash
# Sends the HTTP interface thousands of requests that are made from its own OpenAPI document, right ones and wrong ones, and
# looks at every answer: no 5xx, no status, form or header that the document does not name, nothing wrong that is accepted, no
# route that answers without a token. (What fits the document may be refused all the same: a name of nothing, a time that has passed.)
#
#   tests/schemathesis.sh [options of `schemathesis run`, such as --max-examples 200]
#
# It starts the built binary (FETTLER_TEST_BINARY, or what `cargo build` has made) in a folder of its own, on a free port, and
# stops it. Streams of events do not end by themselves, and are left to tests of their own (api/tests/jobs.rs).
set -euo pipefail

cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.."

say() { printf 'tests/schemathesis.sh: %s\n' "$*" >&2; }
fail() {
    say "$*"
    exit 1
}

fettler="${FETTLER_TEST_BINARY:-${CARGO_TARGET_DIR:-$PWD/target}/debug/fettler}"
[ -x "$fettler" ] || fail "there is no $fettler: build it with 'cargo build', or name it in FETTLER_TEST_BINARY"
schemathesis="${FETTLER_SCHEMATHESIS:-$(tests/servers/install.sh --folder)/schemathesis/bin/schemathesis}"
[ -x "$schemathesis" ] || fail "there is no $schemathesis: tests/servers/install.sh installs it"

folder="$(mktemp -d)"
server=''
stop() {
    local status=$?
    trap - EXIT
    if [ -n "$server" ]; then
        kill -TERM "$server" 2>/dev/null || true
        wait "$server" 2>/dev/null || true
    fi
    if [ "$status" -ne 0 ]; then tail -n 50 -- "$folder/log" >&2 || true; fi
    rm -rf -- "$folder"
    exit "$status"
}
trap stop EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

export HOME="$folder" FETTLER_FOLDER="$folder/fettler" FETTLER_API__REQUESTS_PER_SECOND=100000
# No worker runs the jobs: what they would do to this machine is not the subject.
"$fettler" api --listen 127.0.0.1:0 >"$folder/log" 2>&1 &
server=$!
url=''
give_up=$((SECONDS + 60))
while [ -z "$url" ]; do
    url="$(sed -n 's/.*answers at \(http:[^ ]*\).*/\1/p' "$folder/log")"
    kill -0 "$server" 2>/dev/null || fail "the interface did not start"
    [ "$SECONDS" -lt "$give_up" ] || fail "the interface does not answer"
    [ -n "$url" ] || sleep 0.1
done
token="$("$fettler" token add schemathesis --role admin --all-tenants --quiet 2>/dev/null)"
# Something to find, so that not every answer is a 404.
"$fettler" database add shop /data/shop.sqlite --quiet >/dev/null
"$fettler" policy add nightly --database shop --kind backup --cron '0 2 * * *' --quiet >/dev/null

cd -- "$folder"
try() {
    "$schemathesis" run "$url/api/openapi.json" \
        --header "Authorization: Bearer $token" \
        --checks all \
        --phases examples,coverage,fuzzing,stateful \
        --suppress-health-check all \
        --continue-on-failure \
        --generation-deterministic \
        --max-examples 50 \
        "$@"
}
try --exclude-path-regex '/events$' --exclude-operation-id removeToken --exclude-operation-id submitJobs \
    --exclude-checks positive_data_acceptance "$@"
# A bad row of a batch fails alone, so that the answer to the whole is 200.
try --include-operation-id submitJobs --exclude-checks positive_data_acceptance,negative_data_rejection "$@"
