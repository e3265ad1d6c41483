#!/bin/bash
# The fake AWS that the tests use, judged by two others: AWS's own client drives it, and the same
# assertions run against moto, an emulator written by other people. Where the two emulators answer
# differently, the comment says which one is right and why. Then both judge kmsfs: its own client has
# to get along with them, and AWS's client must open what kmsfs has wrapped.
#
# ENDPOINTS="fake" or "moto" runs one half.
FS=aws-cli BACKING="the fake and moto"
. "$(dirname "$0")/lib.sh"
ring_start 25-aws-cli
ENDPOINTS=${ENDPOINTS:-fake moto}
VENV=$REPO/target/aws-venv
PACKAGES="awscli>=1.44,<2 moto[server]>=5.2,<6"
AWS=$VENV/bin/aws

# A Python environment with both, made once; in a tree that was moved it does not start.
need_venv() {
    [ "$(cat "$VENV/packages" 2>/dev/null)" != "$PACKAGES" ] || ! "$AWS" --version >/dev/null 2>&1 || return 0
    need python3:python3
    python3 -c 'import ensurepip' 2>/dev/null || need "a module, no command:python3-venv"
    echo "installing $PACKAGES"
    # shellcheck disable=SC2086
    { rm -rf "$VENV" && python3 -m venv "$VENV" && "$VENV/bin/pip" install -q $PACKAGES; } \
        >"$WORK/log/pip" 2>&1 || { tail -5 "$WORK/log/pip" >&2; die "cannot install $PACKAGES"; }
    echo "$PACKAGES" >"$VENV/packages"
}
need curl:curl fusermount3:fuse3
need_venv
for b in kmsfs kmsfsctl; do
    [ -x "$KMSFS_BIN/$b" ] || die "$KMSFS_BIN/$b is missing: build it, or set KMSFS_BIN"
    cp "$KMSFS_BIN/$b" "$WORK/bin/"
done
(cd "$REPO" && cargo build -q --locked --example fake-aws) || die "cannot build the fake"

# Nothing of whoever runs this: no profile, no other credentials, no instance metadata.
for name in $(compgen -e | grep '^AWS_'); do unset "$name"; done
export AWS_CONFIG_FILE=/dev/null AWS_SHARED_CREDENTIALS_FILE=/dev/null AWS_EC2_METADATA_DISABLED=true
export AWS_ACCESS_KEY_ID=AKIAFAKEFAKEFAKEFAKE AWS_SECRET_ACCESS_KEY=fake AWS_DEFAULT_REGION=us-east-1
export AWS_MAX_ATTEMPTS=1 AWS_PAGER= XDG_STATE_HOME=$WORK

SERVERS=()
stop_servers() {
    local pid
    for pid in "${SERVERS[@]:-}"; do [ -z "$pid" ] || kill "$pid" 2>/dev/null; done
}
trap 'status=$?; stop_servers; (exit $status); ring_cleanup' EXIT

start_fake() {
    "$REPO/target/debug/examples/fake-aws" >"$WORK/fake" 2>"$WORK/log/fake" &
    SERVERS+=($!)
    for _ in $(seq 100); do
        URL=$(awk '/^endpoint/ { print $2 }' "$WORK/fake")
        [ -z "$URL" ] || return 0
        sleep 0.1
    done
    die "the fake does not start"
}

start_moto() {
    local port
    port=$(python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')
    URL=http://127.0.0.1:$port
    "$VENV/bin/moto_server" -H 127.0.0.1 -p "$port" >"$WORK/log/moto" 2>&1 &
    SERVERS+=($!)
    for _ in $(seq 300); do
        ! curl -sf -o /dev/null "$URL/moto-api/" || return 0
        sleep 0.1
    done
    tail -5 "$WORK/log/moto" >&2
    die "moto does not start"
}

kms() { timeout 60 "$AWS" kms --endpoint-url "$URL" --output text "$@"; }
control() { curl -sf -d "$1" "$URL/_control"; }

# ask QUERY COMMAND...: one value of an answer, empty if there is none.
ask() {
    local query=$1 value
    shift
    value=$(kms "$@" --query "$query" 2>"$WORK/err") || { cat "$WORK/err" >&2; return 1; }
    [ "$value" = None ] || printf '%s\n' "$value"
}

# same NAME EXPECTED QUERY COMMAND...: an answer has this value.
same() {
    local name="$WHO: $1" want=$2 got
    shift 2
    got=$(ask "$@" 2>&1)
    if [ "$got" = "$want" ]; then ok "$name"; else not_ok "$name: got '$got', expected '$want'"; fi
}

# like NAME PATTERN QUERY COMMAND...: an answer matches an extended regular expression.
like() {
    local name="$WHO: $1" want=$2 got
    shift 2
    got=$(ask "$@" 2>&1)
    if [[ $got =~ ^$want$ ]]; then ok "$name"; else not_ok "$name: got '$got', expected /$want/"; fi
}

# fine NAME COMMAND...: a call succeeds.
fine() {
    local name="$WHO: $1" got
    shift
    if got=$(kms "$@" 2>&1); then ok "$name"; else not_ok "$name: $got"; fi
}

# error NAME CODE COMMAND...: a call ends with this exception.
error() {
    local name="$WHO: $1" want=$2 got
    shift 2
    if got=$(kms "$@" 2>&1); then not_ok "$name: succeeded, expected $want"; return; fi
    if [[ $got == *"($want)"* ]]; then ok "$name"; else not_ok "$name: got '${got//$'\n'/ }', expected $want"; fi
}

# says NAME TEXT COMMAND...: a call ends with this in its message.
says() {
    local name="$WHO: $1" want=$2 got
    shift 2
    if got=$(kms "$@" 2>&1); then not_ok "$name: succeeded"; return; fi
    if [[ $got == *"$want"* ]]; then ok "$name"; else not_ok "$name: got '${got//$'\n'/ }'"; fi
}

# blob FILE QUERY COMMAND...: bytes of an answer into a file.
blob() {
    local file=$WORK/$1
    shift
    ask "$@" | base64 -d >"$file" && [ -s "$file" ]
}

# opens NAME PLAINTEXT CIPHERTEXT [OPTIONS...]: a ciphertext opens to what is in a file.
opens() {
    local name=$1 plain=$2 cipher=$3
    shift 3
    blob opened Plaintext decrypt --ciphertext-blob "fileb://$WORK/$cipher" "$@"
    if cmp -s "$WORK/opened" "$WORK/$plain"; then ok "$WHO: $name"; else not_ok "$WHO: $name"; fi
}

size() { stat -c %s "$WORK/$1"; }
is() { if [ "$2" = "$3" ]; then ok "$WHO: $1"; else not_ok "$WHO: $1: $2, expected $3"; fi; }
fake() { [ "$WHO" = fake ]; }

RIGHT=kmsfs:volume=0123,kmsfs:purpose=volume
TURNED=kmsfs:purpose=volume,kmsfs:volume=0123
WRONG=kmsfs:volume=0123,kmsfs:purpose=data
ABSENT=00000000-1111-2222-3333-444444444444

keys() {
    ARN=$(ask KeyMetadata.Arn create-key --description one --tags TagKey=kmsfs,TagValue=test)
    OTHER=$(ask KeyMetadata.Arn create-key)
    [[ $ARN =~ ^arn:aws:kms:us-east-1:[0-9]{12}:key/[0-9a-f-]{36}$ ]] || die "$WHO makes no key: $ARN"
    ID=${ARN##*/}
    same "a new key by id" "$ARN Enabled AWS_KMS CUSTOMER one" \
        "join(' ', KeyMetadata.[Arn, KeyState, Origin, KeyManager, Description])" describe-key --key-id "$ID"
    # moto leaves it null. AWS's model: ENCRYPT_DECRYPT if nothing was asked for.
    ! fake || same "its use" ENCRYPT_DECRYPT KeyMetadata.KeyUsage describe-key --key-id "$ID"
    same "what it can do" SYMMETRIC_DEFAULT 'KeyMetadata.EncryptionAlgorithms[]' describe-key --key-id "$ID"
    same "a key by ARN" "$ID" KeyMetadata.KeyId describe-key --key-id "$ARN"
    # moto leaves MultiRegion null and has hyphens in the ids of multi-Region keys. AWS's model: a
    # flag; the examples in it have 32 digits (mrk-1234abcd12ab34cd56ef1234567890ab).
    ! fake || same "one Region" False KeyMetadata.MultiRegion describe-key --key-id "$ARN"
    ! fake || like "a multi-Region key" 'mrk-[0-9a-f]{32}' KeyMetadata.KeyId create-key --multi-region
    like "the kind of a multi-Region key" PRIMARY \
        KeyMetadata.MultiRegionConfiguration.MultiRegionKeyType create-key --multi-region
    like "a key is in the list" ".*$ID.*" 'Keys[].KeyId' list-keys
    like "pages" ".*$ID.*" 'Keys[].KeyId' list-keys --page-size 1
    error "a key that does not exist" NotFoundException describe-key --key-id "$ABSENT"
    error "no name of a key" NotFoundException describe-key --key-id nonsense
    # moto looks at the end of an ARN only. AWS: a key is in its Region.
    ! fake || error "a key of another Region" NotFoundException describe-key --key-id "${ARN/us-east-1/eu-west-3}"
    error "data key of a missing key" NotFoundException generate-data-key --key-id "$ABSENT" --key-spec AES_256
    # moto cuts the list short without saying so: it knows no Limit here. AWS's model has Truncated.
    ! fake || same "a cut list says so" True Truncated list-keys --no-paginate --limit 1
}

data_keys() {
    local call=(generate-data-key --key-id "$ARN" --encryption-context "$RIGHT")
    kms "${call[@]}" --key-spec AES_256 --query '[KeyId,Plaintext,CiphertextBlob]' >"$WORK/three"
    read -r named plain cipher <"$WORK/three"
    base64 -d <<<"$plain" >"$WORK/plain"
    base64 -d <<<"$cipher" >"$WORK/cipher"
    is "the answer names the ARN" "$named" "$ARN"
    is "AES_256 has 32 bytes" "$(size plain)" 32
    # The real service: 184 bytes. moto's own format is shorter.
    ! fake || is "its ciphertext has 184" "$(size cipher)" 184
    blob short Plaintext "${call[@]}" --key-spec AES_128
    is "AES_128 has 16 bytes" "$(size short)" 16
    blob long Plaintext "${call[@]}" --number-of-bytes 64
    is "64 bytes" "$(size long)" 64
    error "neither size nor kind" ValidationException "${call[@]}"
    error "size and kind" ValidationException "${call[@]}" --key-spec AES_256 --number-of-bytes 32
    error "too many bytes" ValidationException "${call[@]}" --number-of-bytes 1025
    opens "the context in any order" plain cipher --encryption-context "$TURNED"
    opens "with the key named" plain cipher --encryption-context "$RIGHT" --key-id "$ARN"
    same "what Decrypt names" "$ARN" KeyId \
        decrypt --ciphertext-blob "fileb://$WORK/cipher" --encryption-context "$RIGHT"
    error "another context" InvalidCiphertextException \
        decrypt --ciphertext-blob "fileb://$WORK/cipher" --encryption-context "$WRONG"
    error "no context" InvalidCiphertextException decrypt --ciphertext-blob "fileb://$WORK/cipher"
    # moto ignores KeyId in Decrypt. AWS's model: IncorrectKeyException if it is not the blob's.
    ! fake || error "another key named" IncorrectKeyException decrypt --key-id "$OTHER" \
        --ciphertext-blob "fileb://$WORK/cipher" --encryption-context "$RIGHT"
    head -c -1 "$WORK/cipher" >"$WORK/cut"
    printf '\0' | cat "$WORK/cut" - >"$WORK/damaged"
    cmp -s "$WORK/damaged" "$WORK/cipher" && printf '\1' | cat "$WORK/cut" - >"$WORK/damaged"
    error "a damaged ciphertext" InvalidCiphertextException decrypt \
        --ciphertext-blob "fileb://$WORK/damaged" --encryption-context "$RIGHT"
    error "one cut short" InvalidCiphertextException decrypt \
        --ciphertext-blob "fileb://$WORK/cut" --encryption-context "$RIGHT"
    echo rubbish >"$WORK/rubbish"
    error "no ciphertext at all" InvalidCiphertextException decrypt --ciphertext-blob "fileb://$WORK/rubbish"
    head -c 6145 /dev/urandom >"$WORK/huge"
    # moto tries to read it. AWS's model has a limit of 6144.
    ! fake || error "a ciphertext too long" ValidationException decrypt --ciphertext-blob "fileb://$WORK/huge"
    blob without CiphertextBlob generate-data-key-without-plaintext --key-id "$ARN" --key-spec AES_256
    blob opened Plaintext decrypt --ciphertext-blob "fileb://$WORK/without"
    is "a data key without plaintext" "$(size opened)" 32
    same "and without it in the answer" "" Plaintext \
        generate-data-key-without-plaintext --key-id "$ARN" --key-spec AES_256
    blob bytes Plaintext generate-random --number-of-bytes 100
    is "random bytes" "$(size bytes)" 100
}

encrypts() {
    head -c 4096 /dev/urandom >"$WORK/most"
    head -c 4097 /dev/urandom >"$WORK/more"
    local call=(encrypt --key-id "$ARN" --encryption-context "$RIGHT")
    blob sealed CiphertextBlob "${call[@]}" --plaintext "fileb://$WORK/most"
    opens "4096 bytes" most sealed --encryption-context "$RIGHT"
    error "4097 bytes" ValidationException "${call[@]}" --plaintext "fileb://$WORK/more"
    # The other key, another context; the plaintext stays inside.
    local move=(re-encrypt --ciphertext-blob "fileb://$WORK/cipher" --destination-key-id "$OTHER"
        --destination-encryption-context "$WRONG")
    blob moved CiphertextBlob "${move[@]}" --source-encryption-context "$RIGHT"
    opens "re-encrypted" plain moved --encryption-context "$WRONG"
    same "what it names" "$ARN $OTHER" "join(' ', [SourceKeyId, KeyId])" \
        "${move[@]}" --source-encryption-context "$RIGHT"
    same "it needs the new key" "$OTHER" KeyId \
        decrypt --ciphertext-blob "fileb://$WORK/moved" --encryption-context "$WRONG"
    error "re-encrypted from another context" InvalidCiphertextException \
        "${move[@]}" --source-encryption-context "$WRONG"
    # moto knows neither SourceKeyId nor DryRun.
    ! fake || error "re-encrypted from another key" IncorrectKeyException \
        "${move[@]}" --source-encryption-context "$RIGHT" --source-key-id "$OTHER"
    ! fake || error "a dry run" DryRunOperationException "${call[@]}" --plaintext hello --dry-run
    ! fake || error "a dry run without a ciphertext" DryRunOperationException \
        decrypt --key-id "$ARN" --dry-run --dry-run-modifiers IGNORE_CIPHERTEXT
    ! fake || error "a dry run that would fail" InvalidCiphertextException decrypt --dry-run \
        --ciphertext-blob "fileb://$WORK/cipher" --encryption-context "$WRONG"
}

aliases() {
    local name=alias/kmsfs/test region=${ARN%:key/*}
    fine "an alias" create-alias --alias-name "$name" --target-key-id "$ID"
    error "the same again" AlreadyExistsException create-alias --alias-name "$name" --target-key-id "$ID"
    error "an alias without its prefix" ValidationException create-alias --alias-name test --target-key-id "$ID"
    error "a reserved alias" NotAuthorizedException create-alias --alias-name alias/aws/s3 --target-key-id "$ID"
    error "an alias of an alias" ValidationException create-alias --alias-name alias/b --target-key-id "$name"
    same "the key by alias" "$ARN" KeyMetadata.Arn describe-key --key-id "$name"
    same "the key by the ARN of the alias" "$ARN" KeyMetadata.Arn describe-key --key-id "$region:$name"
    same "a data key by alias names the key" "$ARN" KeyId generate-data-key --key-id "$name" --key-spec AES_256
    same "aliases of a key" "$name" 'Aliases[].AliasName' list-aliases --key-id "$ARN"
    fine "pointed elsewhere" update-alias --alias-name "$name" --target-key-id "$OTHER"
    same "is elsewhere" "$OTHER" KeyMetadata.Arn describe-key --key-id "$name"
    fine "taken away" delete-alias --alias-name "$name"
    error "is gone" NotFoundException describe-key --key-id "$name"
    error "cannot go twice" NotFoundException delete-alias --alias-name "$name"
    error "nor be pointed" NotFoundException update-alias --alias-name "$name" --target-key-id "$ID"
}

tags_and_policy() {
    same "a tag from the start" test "Tags[?TagKey=='kmsfs'].TagValue" list-resource-tags --key-id "$ARN"
    fine "more tags" tag-resource --key-id "$ARN" --tags TagKey=b,TagValue=2 TagKey=kmsfs,TagValue=new
    same "a tag changed" new "Tags[?TagKey=='kmsfs'].TagValue" list-resource-tags --key-id "$ARN"
    fine "a tag less" untag-resource --key-id "$ARN" --tag-keys kmsfs
    same "one tag left" b 'Tags[].TagKey' list-resource-tags --key-id "$ARN"
    local root policy
    root=arn:aws:iam::$(cut -d: -f5 <<<"$ARN"):root
    policy='{"Version": "2012-10-17", "Statement": [{"Effect": "Allow", "Principal": {"AWS": "'$root'"}, "Action": "kms:*", "Resource": "*"}]}'
    like "the first policy names the account" ".*$root.*" Policy get-key-policy --key-id "$ARN" --policy-name default
    fine "another policy" put-key-policy --key-id "$ARN" --policy-name default --policy "$policy"
    same "it is kept as it is" "$policy" Policy get-key-policy --key-id "$ARN" --policy-name default
    error "only one policy has a name" NotFoundException get-key-policy --key-id "$ARN" --policy-name other
    # moto accepts any text. AWS's model: MalformedPolicyDocumentException, and a check against
    # locking oneself out.
    ! fake || error "no policy" MalformedPolicyDocumentException \
        put-key-policy --key-id "$ARN" --policy-name default --policy '{"Version"'
    ! fake || error "a policy that locks everybody out" MalformedPolicyDocumentException \
        put-key-policy --key-id "$ARN" --policy-name default --policy "${policy/kms:\*/kms:Decrypt}"
}

rotation() {
    fine "rotation every half year" enable-key-rotation --key-id "$ARN" --rotation-period-in-days 180
    same "is on" True KeyRotationEnabled get-key-rotation-status --key-id "$ARN"
    # moto ignores the period. AWS's model: 90 to 2560 days, and the answer names it.
    ! fake || same "every half year" 180 RotationPeriodInDays get-key-rotation-status --key-id "$ARN"
    fine "off" disable-key-rotation --key-id "$ARN"
    same "is off" False KeyRotationEnabled get-key-rotation-status --key-id "$ARN"
    ! fake || error "too rarely" ValidationException enable-key-rotation --key-id "$ARN" --rotation-period-in-days 2561
    fine "at once" rotate-key-on-demand --key-id "$ARN"
    same "is listed" ON_DEMAND 'Rotations[].RotationType' list-key-rotations --key-id "$ARN"
    opens "old ciphertexts open still" plain cipher --encryption-context "$RIGHT"
}

states() {
    local call=(generate-data-key --key-id "$ARN" --key-spec AES_256)
    local open=(decrypt --ciphertext-blob "fileb://$WORK/cipher" --encryption-context "$RIGHT")
    # By id: moto ends in a Python exception when these are given an ARN.
    fine "disabled" disable-key --key-id "$ID"
    same "is disabled" Disabled KeyMetadata.KeyState describe-key --key-id "$ARN"
    # moto goes on using keys in every state and deletes them at any time. AWS's model has
    # DisabledException and KMSInvalidStateException for that, and its guide 7 to 30 days.
    if fake; then
        error "no data key" DisabledException "${call[@]}"
        error "no decryption" DisabledException "${open[@]}"
        error "not even dry" DisabledException "${call[@]}" --dry-run
        error "no rotation" DisabledException rotate-key-on-demand --key-id "$ARN"
        error "too soon a deletion" ValidationException \
            schedule-key-deletion --key-id "$ARN" --pending-window-in-days 6
    fi
    fine "enabled" enable-key --key-id "$ID"
    opens "opens again" plain cipher --encryption-context "$RIGHT"
    # AWS's model: the answer names the ARN. moto names the key as the call did.
    like "to be deleted" ".*$ID" KeyId schedule-key-deletion --key-id "$ID" --pending-window-in-days 7
    same "is pending" PendingDeletion KeyMetadata.KeyState describe-key --key-id "$ARN"
    like "has a date" '.+' KeyMetadata.DeletionDate describe-key --key-id "$ARN"
    if fake; then
        says "no data key of a doomed key" "is pending deletion." "${call[@]}"
        error "no decryption by a doomed key" KMSInvalidStateException "${open[@]}"
        error "no enabling it" KMSInvalidStateException enable-key --key-id "$ARN"
        error "no alias for it" KMSInvalidStateException \
            create-alias --alias-name alias/doomed --target-key-id "$ARN"
    fi
    like "reprieved" ".*$ID" KeyId cancel-key-deletion --key-id "$ID"
    same "but disabled" Disabled KeyMetadata.KeyState describe-key --key-id "$ARN"
    ! fake || error "reprieved twice" KMSInvalidStateException cancel-key-deletion --key-id "$ARN"
    fine "enabled after all" enable-key --key-id "$ID"
}

caller() {
    local got
    got=$("$AWS" sts get-caller-identity --endpoint-url "$URL" --output text --query Account 2>&1)
    is "who calls" "$got" "$(cut -d: -f5 <<<"$ARN")"
}

# What moto does not have at all.
stores() {
    local store hsm second call
    store=$(awk '/^key store/ { print $3 }' "$WORK/fake")
    hsm=$(awk '/^AWS_CLOUDHSM/ { print $2 }' "$WORK/fake")
    second=$(ask KeyMetadata.Arn create-key --origin AWS_CLOUDHSM --custom-key-store-id "$store")
    same "a key in a store" "AWS_CLOUDHSM $store Enabled" \
        "join(' ', KeyMetadata.[Origin, CustomKeyStoreId, KeyState])" describe-key --key-id "$second"
    like "its cluster" 'cluster-[2-7a-zA-Z]{11,16}' KeyMetadata.CloudHsmClusterId describe-key --key-id "$second"
    error "not in two Regions" UnsupportedOperationException \
        create-key --origin AWS_CLOUDHSM --custom-key-store-id "$store" --multi-region
    error "not in no store" ValidationException create-key --origin AWS_CLOUDHSM
    error "not in a missing store" CustomKeyStoreNotFoundException \
        create-key --origin AWS_CLOUDHSM --custom-key-store-id cks-0000
    for call in enable-key-rotation disable-key-rotation get-key-rotation-status \
        rotate-key-on-demand list-key-rotations; do
        error "$call in a store" UnsupportedOperationException "$call" --key-id "$hsm"
    done
    same "no id of its material" "" KeyMaterialId generate-data-key --key-id "$hsm" --key-spec AES_256
    blob in CiphertextBlob generate-data-key-without-plaintext --key-id "$hsm" --key-spec AES_256
    call=(decrypt --ciphertext-blob "fileb://$WORK/in")
    same "opens in the store" "$hsm" KeyId "${call[@]}"
    same "moved out of the store" "$OTHER" KeyId \
        re-encrypt --ciphertext-blob "fileb://$WORK/in" --destination-key-id "$OTHER"
    blob bytes Plaintext generate-random --number-of-bytes 8 --custom-key-store-id "$store"
    is "random bytes of the cluster" "$(size bytes)" 8
    # Not the only one by now, and a list has no order.
    same "the store" "$store CONNECTED" \
        "join(' ', CustomKeyStores[?CustomKeyStoreId=='$store'][].[CustomKeyStoreId, ConnectionState][])" \
        describe-custom-key-stores
    fine "disconnected" disconnect-custom-key-store --custom-key-store-id "$store"
    same "is disconnected" DISCONNECTED 'CustomKeyStores[].ConnectionState' \
        describe-custom-key-stores --custom-key-store-id "$store"
    same "its keys" Unavailable KeyMetadata.KeyState describe-key --key-id "$hsm"
    error "no decryption" KMSInvalidStateException "${call[@]}"
    says "nor a reason to try again" "is unavailable" "${call[@]}"
    error "no new key" CustomKeyStoreInvalidStateException \
        create-key --origin AWS_CLOUDHSM --custom-key-store-id "$store"
    error "not disconnected twice" CustomKeyStoreInvalidStateException \
        disconnect-custom-key-store --custom-key-store-id "$store"
    fine "connected" connect-custom-key-store --custom-key-store-id "$store"
    same "opens again" "$hsm" KeyId "${call[@]}"
    control '{"store": {"communicates": false}}' >/dev/null
    says "a broken cluster" "KMS cannot communicate with your CloudHSM cluster" "${call[@]}"
    same "does not show" Enabled KeyMetadata.KeyState describe-key --key-id "$hsm"
    control '{"store": {"communicates": true}}' >/dev/null
}

# AWS's client signs, so a wrong signature is one that it made with other secrets.
signatures() {
    AWS_SECRET_ACCESS_KEY=wrong error "another secret" InvalidSignatureException list-keys
    AWS_ACCESS_KEY_ID=AKIAUNKNOWN error "another access key" UnrecognizedClientException list-keys
    AWS_SESSION_TOKEN=token error "a token that was not given" UnrecognizedClientException list-keys
    AWS_DEFAULT_REGION=eu-west-3 error "another Region" InvalidSignatureException list-keys
    control '{"expired": true}' >/dev/null
    error "expired" ExpiredTokenException list-keys
    control '{"expired": false}' >/dev/null
    control '{"credential": {"access_key": "AKIAREADER", "user": "reader", "allow": ["Decrypt"],
        "context": {"kmsfs:purpose": "volume"}}}' >/dev/null
    local right=(--encryption-context "$RIGHT")
    export AWS_ACCESS_KEY_ID=AKIAREADER
    opens "a reader reads" plain cipher "${right[@]}"
    says "a reader makes no data keys" "reader is not authorized to perform: kms:GenerateDataKey" \
        generate-data-key --key-id "$ARN" --key-spec AES_256 "${right[@]}"
    error "nor reads another purpose" AccessDeniedException \
        decrypt --ciphertext-blob "fileb://$WORK/moved" --encryption-context "$WRONG"
    export AWS_ACCESS_KEY_ID=AKIAFAKEFAKEFAKEFAKE
}

faults() {
    local call=(generate-data-key --key-id "$ARN" --key-spec AES_256)
    control '{"reset_counters": true, "throttle": true}' >/dev/null
    error "throttled" ThrottlingException "${call[@]}"
    # The client must take it for something to try again.
    control '{"clear": true, "fault": {"effect": "throttle", "times": 2}}' >/dev/null
    AWS_MAX_ATTEMPTS=3 fine "throttled twice, tried three times" "${call[@]}"
    control '{"fault": {"effect": "internal", "times": 1}}' >/dev/null
    AWS_MAX_ATTEMPTS=2 fine "an internal error, tried twice" "${call[@]}"
    control '{"fault": {"effect": "drop", "operation": "GenerateDataKey", "times": 1}}' >/dev/null
    AWS_MAX_ATTEMPTS=2 fine "an answer lost, tried twice" "${call[@]}"
    control '{"fault": {"effect": "reset", "times": 1}}' >/dev/null
    AWS_MAX_ATTEMPTS=2 fine "a connection reset, tried twice" "${call[@]}"
    # Longer than the client takes to start.
    control '{"refuse_ms": 2000}' >/dev/null
    AWS_MAX_ATTEMPTS=8 fine "nobody there, tried again" "${call[@]}"
    control '{"fault": {"effect": "unavailable", "times": 1}}' >/dev/null
    error "unavailable" ServiceUnavailableException "${call[@]}"
    is "what was counted" "$(curl -sf "$URL/_control" | python3 -c 'import json, sys
print({k: v["calls"] for k, v in json.load(sys.stdin)["counters"]["operations"]["GenerateDataKey"].items()})')" \
        "{'KMSInternalException': 1, 'OK': 6, 'ServiceUnavailableException': 1, 'ThrottlingException': 3, 'reset': 1}"
    control '{"strict_context": true}' >/dev/null
    error "no context of kmsfs" ValidationException "${call[@]}"
    fine "one of kmsfs" "${call[@]}" --encryption-context \
        kmsfs:purpose=volume,kmsfs:volume=00112233445566778899aabbccddeeff
    control '{"strict_context": false}' >/dev/null
}

# The tests of kmsfs's own client (tests/kms_moto.rs); that they ran is counted, not believed.
our_client() {
    local log=$WORK/log/our_client.$WHO tests ran
    tests=$(grep -c '^#\[ignore' "$REPO/tests/kms_moto.rs")
    (cd "$REPO" && KMSFS_TEST_KMS=$URL timeout -k 10 900 cargo test -q --locked --test kms_moto \
        -- --ignored --test-threads 1) >"$log" 2>&1
    ran=$(awk '/^test result: ok/ { n += $4 } END { print n + 0 }' "$log")
    is "tests of our client" "$ran" "$tests"
    [ "$ran" = "$tests" ] || tail -30 "$log" | sed 's/^/    | /' >&2
}

# What kmsfs has wrapped, AWS's client opens, with the encryption context that the manual names only.
our_volume() {
    local src=$WORK/$WHO.src mnt=$WORK/$WHO.mnt file facts volume id key pair
    mkdir "$mnt"
    check "$WHO: a volume" "$WORK/bin/kmsfsctl" init "$src" --key "aws-kms:$ARN" --kms-endpoint "$URL"
    check "$WHO: a mount" "$WORK/bin/kmsfs" "$src" "$mnt" -o "kms-endpoint=$URL"
    check "$WHO: a file" cp "$RING_DIR/lib.sh" "$mnt/file"
    check "$WHO: unmounted" "$WORK/bin/kmsfsctl" umount "$mnt"
    file=$(find "$src" -maxdepth 1 -type f ! -name 'kmsfs.*')
    facts=$(python3 "$RING_DIR/wrapped.py" "$file" "$WORK/ours") || not_ok "$WHO: no wrapped key"
    read -r volume id key <<<"$facts"
    is "what it is wrapped by" "$key" "$ARN"
    is "whose it is" "$("$WORK/bin/kmsfsctl" info --json "$src" | python3 -c \
        'import json, sys; print(json.load(sys.stdin)["volume_id"])')" "$volume"
    local open=(decrypt --ciphertext-blob "fileb://$WORK/ours")
    local right=("kmsfs:volume=$volume" kmsfs:purpose=data "kmsfs:data-key=$id")
    local context
    context=$(IFS=,; echo "${right[*]}")
    same "the key it names" "$ARN" KeyId "${open[@]}" --encryption-context "$context"
    blob key Plaintext "${open[@]}" --encryption-context "$context"
    is "a key of 256 bits" "$(size key)" 32
    error "without a context" InvalidCiphertextException "${open[@]}"
    for pair in "$volume/${volume//[0-9]/a}" purpose=data/purpose=volume "$id/${id//[0-9]/a}" "kmsfs:/other:" \
        ",kmsfs:data-key=$id/" "$id/$id,more=1"; do
        error "with $pair" InvalidCiphertextException "${open[@]}" \
            --encryption-context "${context//${pair%%/*}/${pair#*/}}"
    done
}

# What `provision key` makes, as AWS's client reads it back.
our_key() {
    local name=$WHO-ring account volume key policy role
    account=$(cut -d: -f5 <<<"$ARN")
    role=arn:aws:iam::$account:role
    ctl key --origin aws-kms --name "$name" --tag team=files --rotation-days 365 \
        --admin "$role/keys" --user "$role/host" >"$WORK/key.json" 2>"$WORK/err" ||
        { not_ok "$WHO: provision key: $(tail -1 "$WORK/err")"; return; }
    ok "$WHO: provision key"
    key=$(said_in "$WORK/key.json" key)
    volume=$(said_in "$WORK/key.json" volume_id)
    is "its data key comes and goes" "$(said_in "$WORK/key.json" canary)" passed
    same "the key made by us" "Enabled AWS_KMS kmsfs volume $volume ($name)" \
        "join(' ', KeyMetadata.[KeyState, Origin, Description])" describe-key --key-id "$key"
    same "its alias" "alias/$name" 'Aliases[].AliasName' list-aliases --key-id "$key"
    same "whose alias it is" "$key" KeyMetadata.Arn describe-key --key-id "alias/$name"
    for pair in "kmsfs:deployment $name" "kmsfs:volume $volume" "kmsfs:request $volume.1" \
        "kmsfs:alias alias/$name" "team files"; do
        same "its tag ${pair% *}" "${pair#* }" "Tags[?TagKey=='${pair% *}'].TagValue" \
            list-resource-tags --key-id "$key"
    done
    same "rotation by KMS" True KeyRotationEnabled get-key-rotation-status --key-id "$key"
    # moto ignores the period, see above.
    ! fake || same "once a year" 365 RotationPeriodInDays get-key-rotation-status --key-id "$key"
    policy=$(ask Policy get-key-policy --key-id "$key" --policy-name default)
    is "who may use it, and for what" "$(python3 -c 'import json, sys
use = {s["Sid"]: s for s in json.loads(sys.argv[1])["Statement"]}["VolumeUse"]
print(use["Principal"]["AWS"], use["Condition"]["StringEquals"]["kms:EncryptionContext:kmsfs:volume"])' \
        "$policy")" "$role/host $volume"
    ctl key --origin aws-kms --name "$name" --admin "$role/keys" --user "$role/host" \
        >"$WORK/again.json" 2>"$WORK/err"
    is "a second run finds it" "$(said_in "$WORK/again.json" created) $(said_in "$WORK/again.json" key)" \
        "False $key"
}

# What `provision all` makes of an empty account, as AWS's client reads it back. moto has no CloudHSM.
our_cluster() {
    local hsm=("$AWS" cloudhsmv2 --endpoint-url "$URL" --output text) name=ring tools=$WORK/tools
    local cluster store key query
    mkdir -p "$tools" "$WORK/place"
    for tool in cloudhsm-cli configure-cli; do
        ln -sf "$REPO/tests/support/aws/cloudhsm-cli.py" "$tools/$tool"
    done
    export KMSFS_FAKE_AWS=$URL KMSFS_FAKE_CLI_CONFIG=$WORK/place/cli.cfg KMSFS_FAKE_CLI_LOG=$WORK/place/cli.log
    echo correct horse >"$WORK/place/passphrase"
    ctl all --name "$name" --dir "$WORK/place/dir" --ca-passphrase-file "$WORK/place/passphrase" \
        --subnet subnet-0a000000000000001 --subnet subnet-0a000000000000002 --exec local \
        --cloudhsm-cli "$tools/cloudhsm-cli" --configure-cli "$tools/configure-cli" \
        --admin "arn:aws:iam::111122223333:role/keys" --user "arn:aws:iam::111122223333:role/host" \
        >"$WORK/all.json" 2>"$WORK/err" ||
        { not_ok "$WHO: provision all: $(tail -1 "$WORK/err")"; return; }
    ok "$WHO: provision all"
    cluster=$("${hsm[@]}" describe-clusters \
        --query "Clusters[?TagList[?Key=='kmsfs:deployment' && Value=='$name']].ClusterId" 2>&1)
    query="join(' ', Clusters[0].[State, HsmType, join(',', sort(Hsms[].AvailabilityZone))])"
    is "an active cluster with HSMs in two zones" \
        "$("${hsm[@]}" describe-clusters --filters "clusterIds=$cluster" --query "$query" 2>&1)" \
        "ACTIVE hsm2m.medium us-east-1a,us-east-1b"
    query='Clusters[0].Certificates.ClusterCertificate'
    "${hsm[@]}" describe-clusters --filters "clusterIds=$cluster" --query "$query" >"$WORK/place/cluster.crt" 2>&1
    check "$WHO: its certificate is ours" \
        openssl verify -CAfile "$WORK/place/dir/customerCA.crt" "$WORK/place/cluster.crt"
    query="join(' ', CustomKeyStores[0].[CloudHsmClusterId, ConnectionState, CustomKeyStoreType])"
    same "its key store" "$cluster CONNECTED AWS_CLOUDHSM" "$query" \
        describe-custom-key-stores --custom-key-store-name "$name"
    store=$(ask 'CustomKeyStores[0].CustomKeyStoreId' describe-custom-key-stores --custom-key-store-name "$name")
    key=$(python3 -c 'import json, sys; print(json.load(open(sys.argv[1]))["key"]["key"])' "$WORK/all.json")
    same "the key in it" "$key AWS_CLOUDHSM $store $cluster" \
        "join(' ', KeyMetadata.[Arn, Origin, CustomKeyStoreId, CloudHsmClusterId])" \
        describe-key --key-id "alias/$name"
    error "KMS does not rotate it" UnsupportedOperationException get-key-rotation-status --key-id "$key"
}

# ctl COMMAND...: one of our `provision` commands, answering JSON.
ctl() {
    "$WORK/bin/kmsfsctl" provision "$@" --region us-east-1 --yes --json --poll 100ms --settling 3s \
        --kms-endpoint "$URL" --sts-endpoint "$URL" --cloudhsm-endpoint "$URL"
}

# said_in FILE NAME: a member of a JSON document.
said_in() { python3 -c 'import json, sys; print(json.load(open(sys.argv[1]))[sys.argv[2]])' "$@"; }

for WHO in $ENDPOINTS; do
    "start_$WHO"
    keys
    data_keys
    encrypts
    aliases
    tags_and_policy
    rotation
    states
    caller
    our_volume
    our_key
    our_client
    if fake; then
        our_cluster
        stores
        signatures
        faults
    fi
done
ring_end
