#!/usr/bin/env python3
"""The command-line tools of CloudHSM against the fake AWS: cloudhsm-cli, and configure-cli.

By name, or with `configure-cli` as the first argument. As the real ones do, they read new passwords
twice and log in with CLOUDHSM_ROLE and CLOUDHSM_PIN, and answer JSON with an error_code.

KMSFS_FAKE_AWS         where the fake is (http://127.0.0.1:PORT)
KMSFS_FAKE_CLI_CONFIG  what configure-cli writes and cloudhsm-cli reads
KMSFS_FAKE_CLI_LOG     gets one line of JSON for every run, with all arguments
KMSFS_FAKE_CLI_FAIL    every command of cloudhsm-cli fails with this text
"""

import argparse
import getpass
import json
import os
import sys
import urllib.error
import urllib.request


class Failure(Exception):
    """What the user is told."""


def answer(data):
    print(json.dumps({"error_code": 0, "data": data}, indent=2))


def control(members=None):
    url = os.environ.get("KMSFS_FAKE_AWS")
    if not url:
        raise Failure("KMSFS_FAKE_AWS is not set")
    body = None if members is None else json.dumps(members).encode()
    request = urllib.request.Request(url.rstrip("/") + "/_control", data=body)
    # A proxy of the environment has no business with a loopback address.
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(request) as response:
            return json.load(response)
    except urllib.error.HTTPError as error:
        raise Failure(json.load(error).get("error", "failed")) from None
    except OSError as error:
        raise Failure(f"cannot reach the cluster: {error}") from None


def config_path():
    path = os.environ.get("KMSFS_FAKE_CLI_CONFIG")
    if not path:
        raise Failure("KMSFS_FAKE_CLI_CONFIG is not set")
    return path


def read_config():
    try:
        with open(config_path(), encoding="utf-8") as file:
            return json.load(file)["clusters"][0]["cluster"]
    except FileNotFoundError:
        raise Failure("cloudhsm-cli is not configured; run configure-cli first") from None


def same_certificate(one, other):
    return "".join((one or "").split()) == "".join((other or "").split())


def connect():
    """The cluster of the configuration, if one of its HSMs answers."""
    config = read_config()
    ips = {server["hostname"] for server in config["servers"]}
    for cluster in control()["clusters"]:
        hsms = [hsm for hsm in cluster["Hsms"] if hsm["State"] == "ACTIVE"]
        if not ips & {hsm["EniIp"] for hsm in hsms}:
            continue
        anchor = config.get("hsm_ca_file")
        if anchor:
            try:
                with open(anchor, encoding="utf-8") as file:
                    anchor = file.read()
            except OSError as error:
                raise Failure(f"cannot read {anchor}: {error.strerror}") from None
            if not same_certificate(anchor, cluster.get("TrustAnchor")):
                raise Failure("the certificate of the cluster is not signed by the trust anchor")
        return cluster, hsms
    raise Failure("unable to connect to any HSM of the cluster")


def ask(prompt):
    if sys.stdin.isatty():
        return getpass.getpass(prompt + "\n")
    print(prompt, file=sys.stderr, flush=True)
    line = sys.stdin.readline()
    if not line:
        raise Failure("no password was given")
    return line.rstrip("\n")


def new_password(given):
    if given is not None:
        return given
    password = ask("Enter password:")
    if ask("Confirm password:") != password:
        raise Failure("passwords do not match")
    return password


def admin_password():
    role, pin = os.environ.get("CLOUDHSM_ROLE"), os.environ.get("CLOUDHSM_PIN", "")
    name, _, password = pin.partition(":")
    if role != "admin" or name != "admin" or not password:
        raise Failure("this command needs a login: set CLOUDHSM_ROLE and CLOUDHSM_PIN")
    return password


def activate(options):
    cluster, _ = connect()
    if cluster["State"] != "INITIALIZED":
        raise Failure(f"cluster is {cluster['State']}, not INITIALIZED")
    password = new_password(options.password)
    control({"activate": {"cluster": cluster["ClusterId"], "password": password}})
    answer("Cluster activation successful")


def user_create(options):
    cluster, _ = connect()
    login = admin_password()
    password = new_password(options.password)
    control({"hsm_user": {
        "cluster": cluster["ClusterId"], "admin": login, "username": options.username,
        "role": options.role, "password": password,
    }})
    answer({"username": options.username, "role": options.role})


def user_change_password(options):
    cluster, _ = connect()
    login = admin_password()
    password = new_password(options.password)
    control({"hsm_user": {
        "cluster": cluster["ClusterId"], "admin": login, "username": options.username,
        "password": password,
    }})
    answer({"username": options.username, "role": options.role})


def user_delete(options):
    cluster, _ = connect()
    control({"hsm_user": {
        "cluster": cluster["ClusterId"], "admin": admin_password(),
        "username": options.username, "delete": True,
    }})
    answer({"username": options.username, "role": options.role})


def user_list(_options):
    cluster, _ = connect()
    users = control({"hsm_users": cluster["ClusterId"]})["hsm_users"]
    if not users:
        users = [{"username": "admin", "role": "unactivated-admin", "locked": False}]
    users.append({"username": "app_user", "role": "internal(APPLIANCE_USER)", "locked": False})
    answer({"users": [{
        "username": user["username"], "role": user["role"],
        "locked": str(user["locked"]).lower(), "mfa": [], "quorum": [],
        "cluster-coverage": "full",
    } for user in users]})


def hsm_info(_options):
    cluster, hsms = connect()
    fips = "2 [FIPS mode with single factor authentication]"
    answer({"hsms": [{
        "vendor": "Marvell Semiconductors, Inc.", "model": "LiquidSecurity 2",
        "serial-number": hsm["HsmId"], "fips-state": fips if cluster["Mode"] == "FIPS" else "0",
    } for hsm in hsms]})


def configure(arguments):
    parser = argparse.ArgumentParser(prog="configure-cli")
    parser.add_argument("-a", dest="address")
    parser.add_argument("--cluster-id")
    parser.add_argument("--region")
    parser.add_argument("--endpoint")
    parser.add_argument("--hsm-ca-cert")
    options = parser.parse_args(arguments)
    if (options.address is None) == (options.cluster_id is None):
        parser.error("one of -a and --cluster-id is needed")
    addresses = [options.address]
    if options.cluster_id:
        found = [c for c in control()["clusters"] if c["ClusterId"] == options.cluster_id]
        if not found:
            raise Failure(f"cluster {options.cluster_id} was not found")
        addresses = [hsm["EniIp"] for hsm in found[0]["Hsms"]]
        if not addresses:
            raise Failure(f"cluster {options.cluster_id} has no HSMs")
    config = {"clusters": [{"type": "hsm2m", "cluster": {
        "hsm_ca_file": options.hsm_ca_cert,
        "servers": [{"hostname": ip, "port": 2223, "enable": True} for ip in addresses],
    }}]}
    with open(config_path(), "w", encoding="utf-8") as file:
        json.dump(config, file, indent=2)


def parse(arguments):
    parser = argparse.ArgumentParser(prog="cloudhsm-cli")
    groups = parser.add_subparsers(required=True)

    def command(group, name, run, user=False, secret=False):
        one = group.add_parser(name)
        one.set_defaults(run=run)
        if user:
            one.add_argument("--username", required=True)
            one.add_argument("--role", required=True, choices=["admin", "crypto-user"])
        if secret:
            one.add_argument("--password")

    cluster = groups.add_parser("cluster").add_subparsers(required=True)
    command(cluster, "activate", activate, secret=True)
    command(cluster, "hsm-info", hsm_info)
    user = groups.add_parser("user").add_subparsers(required=True)
    command(user, "create", user_create, user=True, secret=True)
    command(user, "change-password", user_change_password, user=True, secret=True)
    command(user, "delete", user_delete, user=True)
    command(user, "list", user_list)
    return parser.parse_args(arguments)


def main():
    arguments = sys.argv[1:]
    name = os.path.basename(sys.argv[0])
    if log := os.environ.get("KMSFS_FAKE_CLI_LOG"):
        with open(log, "a", encoding="utf-8") as file:
            file.write(json.dumps({"argv": [name, *arguments]}) + "\n")
    if arguments[:1] == ["configure-cli"]:
        name, arguments = "configure-cli", arguments[1:]
    try:
        if name.startswith("configure-cli"):
            configure(arguments)
        else:
            options = parse(arguments)
            if failure := os.environ.get("KMSFS_FAKE_CLI_FAIL"):
                raise Failure(failure)
            options.run(options)
    except Failure as failure:
        print(json.dumps({"error_code": 1, "data": str(failure)}, indent=2))
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
