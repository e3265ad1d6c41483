//! Credentials from everywhere AWS programs look for them, and endpoints from nowhere but the options.

use std::collections::HashMap;
use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::process::Command;

use super::aws::{FakeAws, Principal};
use super::bed::{Bed, errno, said, until};

const EXPIRES: &str = "2099-01-01T00:00:00Z";

/// Mounts with these variables instead of the usual credentials, and reads a file.
fn opens_with(bed: &mut Bed, variables: &[(&str, String)]) {
    let mut mount = bed.mount_command("");
    mount.env_remove("AWS_ACCESS_KEY_ID").env_remove("AWS_SECRET_ACCESS_KEY");
    for (name, value) in variables {
        mount.env(name, value);
    }
    bed.mount_with(&mut mount);
    bed.read_files("a", 2);
    bed.unmount();
}

/// A volume with two files, and a user with temporary credentials.
fn bed() -> Bed {
    let mut bed = Bed::new();
    bed.mount("");
    bed.make_files("a", 2);
    bed.unmount();
    let mut user = Principal::new("ASIATEMPORARY", "temporary", "session");
    user.token = Some("a-token".into());
    bed.fake.add_principal(user);
    bed
}

/// Serves fixed answers by method and path; `None` as method is any.
fn serve(answers: Vec<(&'static str, &'static str, String)>) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let answers: HashMap<_, _> = answers
                .iter()
                .map(|(method, path, body)| ((*method, *path), body.clone()))
                .collect();
            std::thread::spawn(move || answer(stream, &answers));
        }
    });
    format!("http://{address}")
}

fn answer(mut stream: TcpStream, answers: &HashMap<(&str, &str), String>) {
    let mut reader = BufReader::new(stream.try_clone().unwrap());
    let mut line = String::new();
    while reader.read_line(&mut line).is_ok_and(|n| n > 0) {
        let (mut length, mut header) = (0, String::new());
        while reader.read_line(&mut header).is_ok_and(|n| n > 2) {
            let lower = header.to_ascii_lowercase();
            if let Some(value) = lower.strip_prefix("content-length:") {
                length = value.trim().parse().unwrap();
            }
            header.clear();
        }
        reader.read_exact(&mut vec![0; length]).unwrap();
        let mut words = line.split(' ');
        let (method, path) = (words.next().unwrap(), words.next().unwrap_or_default());
        let path = path.split('?').next().unwrap_or_default();
        let (status, body) = match answers.get(&(method, path)) {
            Some(body) => ("200 OK", body.as_str()),
            None => ("404 Not Found", ""),
        };
        let length = body.len();
        let ttl = "X-Aws-Ec2-Metadata-Token-Ttl-Seconds: 21600\r\n";
        write!(stream, "HTTP/1.1 {status}\r\n{ttl}Content-Length: {length}\r\n\r\n{body}").unwrap();
        line.clear();
    }
}

#[test]
fn a_profile_of_the_credentials_file() {
    let mut bed = bed();
    let file = bed.path("credentials");
    let text = "[backup]\naws_access_key_id=ASIATEMPORARY\naws_secret_access_key=temporary\n\
        aws_session_token=a-token\n";
    fs::write(&file, text).unwrap();
    let file = file.display().to_string();
    opens_with(
        &mut bed,
        &[("AWS_SHARED_CREDENTIALS_FILE", file), ("AWS_PROFILE", "backup".into())],
    );
}

#[test]
fn a_credential_process() {
    let mut bed = bed();
    let text = format!(
        "[default]\ncredential_process = printf '%s' '{{\"Version\":1,\"AccessKeyId\":\
         \"ASIATEMPORARY\",\"SecretAccessKey\":\"temporary\",\"SessionToken\":\"a-token\",\
         \"Expiration\":\"{EXPIRES}\"}}'\n"
    );
    let file = bed.path("config");
    fs::write(&file, text).unwrap();
    let file = file.display().to_string();
    opens_with(&mut bed, &[("AWS_CONFIG_FILE", file)]);
}

fn session() -> String {
    format!(
        "{{\"Code\":\"Success\",\"Type\":\"AWS-HMAC\",\"AccessKeyId\":\"ASIATEMPORARY\",\
         \"SecretAccessKey\":\"temporary\",\"Token\":\"a-token\",\"Expiration\":\"{EXPIRES}\",\
         \"LastUpdated\":\"2026-01-01T00:00:00Z\"}}"
    )
}

#[test]
fn a_container_role() {
    let mut bed = bed();
    let server = serve(vec![("GET", "/role", session())]);
    opens_with(&mut bed, &[("AWS_CONTAINER_CREDENTIALS_FULL_URI", format!("{server}/role"))]);
}

#[test]
fn an_instance_role() {
    let mut bed = bed();
    let roles = "/latest/meta-data/iam/security-credentials/";
    let server = serve(vec![
        ("PUT", "/latest/api/token", "imds-token".into()),
        ("GET", roles, "role".into()),
        ("GET", "/latest/meta-data/iam/security-credentials/role", session()),
    ]);
    opens_with(
        &mut bed,
        &[
            ("AWS_EC2_METADATA_DISABLED", "false".into()),
            ("AWS_EC2_METADATA_SERVICE_ENDPOINT", server),
        ],
    );
}

#[test]
fn a_web_identity() {
    let mut bed = bed();
    let answer = format!(
        "<AssumeRoleWithWebIdentityResponse xmlns=\"https://sts.amazonaws.com/doc/2011-06-15/\">\
         <AssumeRoleWithWebIdentityResult><AssumedRoleUser><Arn>arn:aws:sts::1:assumed-role/r/s\
         </Arn><AssumedRoleId>AROA:s</AssumedRoleId></AssumedRoleUser><Credentials><AccessKeyId>\
         ASIATEMPORARY</AccessKeyId><SecretAccessKey>temporary</SecretAccessKey><SessionToken>\
         a-token</SessionToken><Expiration>{EXPIRES}</Expiration></Credentials>\
         </AssumeRoleWithWebIdentityResult></AssumeRoleWithWebIdentityResponse>"
    );
    let server = serve(vec![("POST", "/", answer)]);
    let token = bed.path("token");
    fs::write(&token, "a.web.token").unwrap();
    opens_with(
        &mut bed,
        &[
            ("AWS_WEB_IDENTITY_TOKEN_FILE", token.display().to_string()),
            ("AWS_ROLE_ARN", "arn:aws:iam::111122223333:role/r".into()),
            ("AWS_ENDPOINT_URL_STS", server),
        ],
    );
}

#[test]
fn single_sign_on() {
    let mut bed = bed();
    let answer = "{\"roleCredentials\":{\"accessKeyId\":\"ASIATEMPORARY\",\"secretAccessKey\":\
        \"temporary\",\"sessionToken\":\"a-token\",\"expiration\":4070908800000}}";
    let server = serve(vec![("GET", "/federation/credentials", answer.into())]);
    let home = bed.path("home");
    let cache = home.join(".aws/sso/cache");
    fs::create_dir_all(&cache).unwrap();
    let url = "https://example.awsapps.com/start";
    let config = format!(
        "[default]\nsso_start_url={url}\nsso_region=us-east-1\nsso_account_id=111122223333\n\
         sso_role_name=r\n"
    );
    fs::write(home.join(".aws/config"), config).unwrap();
    let sum = said(Command::new("sh").args(["-c", &format!("printf %s {url} | sha1sum")]));
    let (sum, _) = sum.split_once(' ').unwrap();
    let token = format!(
        "{{\"accessToken\":\"t\",\"expiresAt\":\"{EXPIRES}\",\"startUrl\":\"{url}\",\"region\":\
         \"us-east-1\"}}"
    );
    fs::write(cache.join(format!("{sum}.json")), token).unwrap();
    let config = home.join(".aws/config").display().to_string();
    opens_with(
        &mut bed,
        &[
            ("HOME", home.display().to_string()),
            ("AWS_CONFIG_FILE", config),
            ("AWS_ENDPOINT_URL_SSO", server),
        ],
    );
}

#[test]
fn without_credentials_the_sentence_says_so() {
    let bed = bed();
    let mut mount = bed.mount_command("kms-deadline=2s");
    mount.env_remove("AWS_ACCESS_KEY_ID").env_remove("AWS_SECRET_ACCESS_KEY");
    let said = super::bed::refused(&mut mount, 18);
    assert!(said.contains("no AWS credentials") && said.contains(&bed.key), "{said}");
    assert_eq!(
        bed.fake.calls_total(),
        bed.fake.calls("GenerateDataKey") + bed.fake.calls("Decrypt")
    );
}

/// Credentials that were renewed on the host are found without a remount.
#[test]
fn renewed_credentials_are_picked_up() {
    let mut bed = Bed::with(&["--files-per-data-key", "1"]);
    bed.mount("");
    bed.make_files("a", 4);
    bed.unmount();
    let file = bed.path("credentials");
    let write = |id: &str| {
        let text = format!("[default]\naws_access_key_id={id}\naws_secret_access_key=s\n");
        fs::write(&file, text).unwrap();
    };
    for id in ["AKIAFIRST", "AKIASECOND"] {
        bed.fake.add_principal(Principal::new(id, "s", id));
    }
    write("AKIAFIRST");
    let mut mount = bed.mount_command("kms-deadline=1s");
    mount.env_remove("AWS_ACCESS_KEY_ID").env_remove("AWS_SECRET_ACCESS_KEY");
    mount.env("AWS_SHARED_CREDENTIALS_FILE", &file);
    bed.mount_with(&mut mount);
    assert_eq!(fs::read(bed.at("a-00000")).unwrap(), b"file 0");
    let mut expired = Principal::new("AKIAFIRST", "s", "AKIAFIRST");
    expired.expired = true;
    bed.fake.add_principal(expired);
    assert_eq!(errno(fs::read(bed.at("a-00001"))), libc::ENOKEY);
    assert!(bed.log().contains("renew this host's AWS credentials"), "{}", bed.log());
    write("AKIASECOND");
    until("the new credentials", || fs::read(bed.at("a-00002")).is_ok());
    bed.unmount();
}

/// Whoever controls the environment must not control where keys are sent.
#[test]
fn ambient_endpoints_are_ignored() {
    let mut bed = bed();
    let elsewhere = FakeAws::start();
    let mut mount = bed.mount_command("");
    for name in ["AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_KMS"] {
        mount.env(name, elsewhere.endpoint());
    }
    mount.env("AWS_USE_FIPS_ENDPOINT", "true").env("AWS_REGION", "eu-west-1");
    bed.mount_with(&mut mount);
    bed.read_files("a", 2);
    bed.unmount();
    assert_eq!(elsewhere.calls_total(), 0);

    // Without the option the call goes to AWS itself, which is not here.
    let mut ctl = super::bed::ctl(&["verify"]);
    ctl.arg(bed.source()).args(["--kms-deadline", "300ms"]);
    ctl.env("AWS_ENDPOINT_URL_KMS", elsewhere.endpoint());
    ctl.env("HTTPS_PROXY", "http://127.0.0.1:9");
    let said = super::bed::refused(&mut ctl, 18);
    assert!(said.contains(&bed.key), "{said}");
    assert_eq!(elsewhere.calls_total(), 0);
}

/// The version of kmsfs stands in CloudTrail.
#[test]
fn requests_name_the_program() {
    let mut bed = bed();
    bed.fake.reset_counters();
    bed.mount("ro");
    bed.unmount();
    let agents: Vec<String> = bed.fake.log().into_iter().map(|entry| entry.user_agent).collect();
    let name = concat!("app/kmsfs-", env!("CARGO_PKG_VERSION"));
    assert!(!agents.is_empty() && agents.iter().all(|agent| agent.contains(name)), "{agents:?}");
}
