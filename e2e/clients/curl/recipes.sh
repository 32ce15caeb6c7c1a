#!/usr/bin/env bash
# What people do with curl, against a member at $1 (host:port): keys, transactions, a watch, leases, a token, probes,
# metrics. It says what is wrong and ends with 1.
set -euo pipefail
url=http://$1

say() { echo "FAILED: $*" >&2; exit 1; }
# post PATH BODY
post() { curl --noproxy "*" --silent --show-error --max-time 30 --request POST "$url$1" --data "$2" ${token:+--header "Authorization: $token"}; }
get() { curl --noproxy "*" --silent --show-error --max-time 30 "$url$1"; }
b64() { printf %s "$1" | base64 --wrap=0; }
# has TEXT PART...
has() { local text=$1; shift; for part in "$@"; do [[ $text == *"$part"* ]] || say "no $part in $text"; done; }
token=

# Keys.
key=$(b64 curl/foo) value=$(b64 bar) end=$(b64 curl0)
has "$(post /v3/kv/put "{\"key\":\"$key\",\"value\":\"$value\"}")" '"header":{' '"revision":"'
has "$(post /v3/kv/range "{\"key\":\"$key\"}")" "\"key\":\"$key\"" "\"value\":\"$value\"" '"count":"1"'
has "$(post /v3/kv/range "{\"key\":\"$(b64 curl/)\",\"range_end\":\"$end\",\"keys_only\":true}")" "\"key\":\"$key\""
has "$(post /v3/kv/range '{"key":"not base64!"}')" '"code":3' '"message":"'
has "$(post /v3/kv/put '{}')" '"message":"etcdserver: key is not provided"'

# A transaction.
txn="{\"compare\":[{\"key\":\"$key\",\"target\":\"VALUE\",\"result\":\"EQUAL\",\"value\":\"$value\"}],
  \"success\":[{\"requestPut\":{\"key\":\"$key\",\"value\":\"$(b64 new)\"}}],\"failure\":[{\"requestRange\":{\"key\":\"$key\"}}]}"
has "$(post /v3/kv/txn "$txn")" '"succeeded":true' '"response_put"'
again=$(post /v3/kv/txn "$txn")
has "$again" '"response_range"' "\"value\":\"$(b64 new)\""
[[ $again != *succeeded* ]] || say "a false comparison: $again"

# A watch gives a line for each answer: what was, from the first revision on.
first=$(post /v3/kv/range "{\"key\":\"$key\"}" | sed 's/.*"create_revision":"\([0-9]*\)".*/\1/')
lines=$(curl --noproxy "*" --silent --no-buffer --max-time 30 "$url/v3/watch" --data "{\"create_request\":{\"key\":\"$key\",\"start_revision\":\"$first\"}}" 2>/dev/null | head --lines=2) || true
has "$lines" '"created":true' '"events":[' "\"value\":\"$(b64 new)\""

# A lease.
lease=$(post /v3/lease/grant '{"TTL":"60"}')
has "$lease" '"TTL":"60"'
id=$(sed 's/.*"ID":"\([0-9]*\)".*/\1/' <<<"$lease")
post /v3/kv/put "{\"key\":\"$(b64 curl/leased)\",\"lease\":\"$id\"}" >/dev/null
has "$(post /v3/lease/timetolive "{\"ID\":\"$id\",\"keys\":true}")" '"grantedTTL":"60"' "\"keys\":[\"$(b64 curl/leased)\"]"
has "$(post /v3/lease/keepalive "{\"ID\":\"$id\"}")" "{\"result\":{" '"TTL":"60"'
has "$(post /v3/lease/leases '{}')" "{\"ID\":\"$id\"}"
post /v3/lease/revoke "{\"ID\":\"$id\"}" >/dev/null
has "$(post /v3/lease/revoke "{\"ID\":\"$id\"}")" '"message":"etcdserver: requested lease not found"'

# Who is there.
has "$(post /v3/cluster/member/list '{}')" '"members":[' '"clientURLs":['
has "$(post /v3/maintenance/status '{}')" '"version":"3.7.1"' '"leader":"'

# A user with a token.
post /v3/auth/user/add '{"name":"root","password":"secret"}' >/dev/null
post /v3/auth/role/add '{"name":"root"}' >/dev/null
post /v3/auth/user/grant '{"user":"root","role":"root"}' >/dev/null
post /v3/auth/enable '{}' >/dev/null
has "$(post /v3/kv/range "{\"key\":\"$key\"}")" '"message":"etcdserver: user name is empty"'
token=wrong
has "$(post /v3/kv/range "{\"key\":\"$key\"}")" '"message":"etcdserver: invalid auth token"'
token=
has "$(post /v3/auth/authenticate '{"name":"root","password":"wrong"}')" '"message":"etcdserver: authentication failed, invalid user ID or password"'
token=$(post /v3/auth/authenticate '{"name":"root","password":"secret"}' | sed 's/.*"token":"\([^"]*\)".*/\1/')
has "$(post /v3/kv/range "{\"key\":\"$key\"}")" '"count":"1"'
post /v3/auth/disable '{}' >/dev/null
token=
post /v3/auth/user/delete '{"name":"root"}' >/dev/null
post /v3/auth/role/delete '{"role":"root"}' >/dev/null

# Probes and figures.
[[ $(get /health) == '{"health":"true","reason":""}' ]] || say "health: $(get /health)"
[[ $(get /livez) == ok && $(get /readyz) == ok ]] || say "livez, readyz"
has "$(get '/livez?verbose')" '[+]serializable_read ok' ok
has "$(get '/readyz?verbose')" '[+]data_corruption ok' '[+]linearizable_read ok' '[+]non_learner ok'
[[ $(get '/readyz?verbose&exclude=non_learner') != *non_learner* ]] || say "exclude"
has "$(get /version)" '"etcdserver":"3.7.1"' '"etcdcluster":"3.7.0"'
metrics=$(get /metrics)
for name in etcd_server_has_leader etcd_server_leader_changes_seen_total etcd_disk_wal_fsync_duration_seconds_bucket \
  etcd_disk_backend_commit_duration_seconds_bucket etcd_mvcc_db_total_size_in_bytes; do
  grep --quiet "^$name" <<<"$metrics" || say "no $name in the metrics"
done
post /v3/kv/deleterange "{\"key\":\"$(b64 curl/)\",\"range_end\":\"$end\"}" >/dev/null
echo ok
