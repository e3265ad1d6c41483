//! Credentials from everywhere AWS programs look for them, and endpoints from nowhere but the options.

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpListener;
use std::path::PathBuf;
use std::process::Command;
use std::sync::{Arc, Mutex};

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

type Answers = Vec<(&'static str, &'static str, String)>;

/// Serves fixed answers by method and path.
fn serve(answers: Answers) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let answers = answers.clone();
            std::thread::spawn(move || answer(BufReader::new(stream), &answers));
        }
    });
    format!("http://{address}")
}

/// Answers one connection, until its other end has gone.
fn answer<S: Read + Write>(mut stream: BufReader<S>, answers: &Answers) {
    while let Some(line) = request(&mut stream) {
        let mut words = line.split(' ');
        let (method, path) = (words.next().unwrap(), words.next().unwrap_or_default());
        let path = path.split('?').next().unwrap_or_default();
        let found = answers.iter().find(|(m, p, _)| (*m, *p) == (method, path));
        let (status, body) = found.map_or(("404 Not Found", ""), |found| ("200 OK", &found.2));
        let length = body.len();
        let ttl = "X-Aws-Ec2-Metadata-Token-Ttl-Seconds: 21600\r\n";
        let stream = stream.get_mut();
        write!(stream, "HTTP/1.1 {status}\r\n{ttl}Content-Length: {length}\r\n\r\n{body}").unwrap();
        stream.flush().unwrap();
    }
}

/// The first line of the next request.
fn request(stream: &mut impl BufRead) -> Option<String> {
    let (mut line, mut header, mut length) = (String::new(), String::new(), 0);
    stream.read_line(&mut line).ok().filter(|&n| n > 0)?;
    while stream.read_line(&mut header).is_ok_and(|n| n > 2) {
        let lower = header.to_ascii_lowercase();
        if let Some(value) = lower.strip_prefix("content-length:") {
            length = value.trim().parse().unwrap();
        }
        header.clear();
    }
    stream.read_exact(&mut vec![0; length]).unwrap();
    Some(line)
}

/// What a host of AWS's would be, behind a proxy that leads every name to it.
struct Amazon {
    proxy: String,
    certificate: PathBuf,
    /// The names it was asked for.
    asked: Arc<Mutex<Vec<String>>>,
}

impl Amazon {
    fn start(bed: &Bed, names: &[&str], answers: Answers) -> Amazon {
        let names: Vec<String> = names.iter().map(|&name| name.to_owned()).collect();
        let made = rcgen::generate_simple_self_signed(names).unwrap();
        let certificate = bed.path("amazon.pem");
        fs::write(&certificate, made.cert.pem()).unwrap();
        let key = rustls::pki_types::PrivateKeyDer::try_from(made.signing_key.serialize_der());
        let tls = rustls::ServerConfig::builder()
            .with_no_client_auth()
            .with_single_cert(vec![made.cert.der().clone()], key.unwrap())
            .unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let proxy = format!("http://{}", listener.local_addr().unwrap());
        let (tls, asked) = (Arc::new(tls), Arc::<Mutex<Vec<String>>>::default());
        let names = asked.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let (tls, names, answers) = (tls.clone(), names.clone(), answers.clone());
                std::thread::spawn(move || {
                    let mut plain = BufReader::new(stream);
                    let Some(line) = request(&mut plain) else { return };
                    names.lock().unwrap().push(line.trim().to_owned());
                    let mut stream = plain.into_inner();
                    write!(stream, "HTTP/1.1 200 OK\r\n\r\n").unwrap();
                    let tls = rustls::ServerConnection::new(tls).unwrap();
                    answer(BufReader::new(rustls::StreamOwned::new(tls, stream)), &answers);
                });
            }
        });
        Amazon { proxy, certificate, asked }
    }

    /// The variables that lead there.
    fn variables(&self) -> [(&'static str, String); 2] {
        let certificate = self.certificate.display().to_string();
        [("HTTPS_PROXY", self.proxy.clone()), ("SSL_CERT_FILE", certificate)]
    }
}

/// A place nobody may be led to: whether anybody has connected.
struct Elsewhere(TcpListener);

impl Elsewhere {
    fn open() -> Elsewhere {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        listener.set_nonblocking(true).unwrap();
        Elsewhere(listener)
    }

    fn url(&self) -> String {
        format!("http://{}", self.0.local_addr().unwrap())
    }

    /// A caller waits in the queue of the listener, so this is not a matter of time.
    fn was_visited(&self) -> bool {
        self.0.accept().is_ok()
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
    let amazon = Amazon::start(&bed, &["sts.us-east-1.amazonaws.com"], vec![("POST", "/", answer)]);
    let elsewhere = Elsewhere::open();
    let token = bed.path("token");
    fs::write(&token, "a.web.token").unwrap();
    let ambient = ["AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_STS"].map(|name| (name, elsewhere.url()));
    let identity = [
        ("AWS_WEB_IDENTITY_TOKEN_FILE", token.display().to_string()),
        ("AWS_ROLE_ARN", "arn:aws:iam::111122223333:role/r".into()),
    ];
    opens_with(&mut bed, &[&amazon.variables()[..], &ambient, &identity].concat());
    assert_eq!(*amazon.asked.lock().unwrap(), ["CONNECT sts.us-east-1.amazonaws.com:443 HTTP/1.1"]);
    assert!(!elsewhere.was_visited());
}

#[test]
fn single_sign_on() {
    let mut bed = bed();
    let answer = "{\"roleCredentials\":{\"accessKeyId\":\"ASIATEMPORARY\",\"secretAccessKey\":\
        \"temporary\",\"sessionToken\":\"a-token\",\"expiration\":4070908800000}}";
    let name = "portal.sso.us-east-1.amazonaws.com";
    let answers = vec![("GET", "/federation/credentials", answer.into())];
    let (amazon, elsewhere) = (Amazon::start(&bed, &[name], answers), Elsewhere::open());
    let home = bed.path("home");
    let cache = home.join(".aws/sso/cache");
    fs::create_dir_all(&cache).unwrap();
    let url = "https://example.awsapps.com/start";
    let other = elsewhere.url();
    let config = format!(
        "[default]\nsso_start_url={url}\nsso_region=us-east-1\nsso_account_id=111122223333\n\
         sso_role_name=r\nendpoint_url = {other}\nservices = s\n\n\
         [services s]\nsso =\n  endpoint_url = {other}\n"
    );
    fs::write(home.join(".aws/config"), config).unwrap();
    let sum = said(Command::new("sh").args(["-c", &format!("printf %s {url} | sha1sum")]));
    let (sum, _) = sum.split_once(' ').unwrap();
    let token = format!(
        "{{\"accessToken\":\"t\",\"expiresAt\":\"{EXPIRES}\",\"startUrl\":\"{url}\",\"region\":\
         \"us-east-1\"}}"
    );
    fs::write(cache.join(format!("{sum}.json")), token).unwrap();
    let mut variables = amazon.variables().to_vec();
    variables.push(("HOME", home.display().to_string()));
    // A path that is not given whole begins at HOME.
    variables.push(("AWS_CONFIG_FILE", "~/.aws/config".into()));
    variables.push(("AWS_ENDPOINT_URL_SSO", other));
    opens_with(&mut bed, &variables);
    assert_eq!(*amazon.asked.lock().unwrap(), [format!("CONNECT {name}:443 HTTP/1.1")]);
    assert!(!elsewhere.was_visited());
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
