//! What the surroundings may say: which credentials to use, and not where they are fetched.
//!
//! The AWS library takes endpoints from the environment and from profile files, those of the services
//! it fetches credentials from too, and sends what proves who we are (a web identity's token, a login)
//! to them, in clear if they say http. It has no switch against that which holds for credentials, so
//! it does not get to see them.

use crate::sys::process;
use aws_runtime::env_config::file::{EnvConfigFileKind, EnvConfigFiles};
use std::ffi::OsString;
use std::path::PathBuf;

/// Variables that name endpoints; those of one service have its name behind.
const VARIABLES: &str = "AWS_ENDPOINT_URL";
/// The same in profile files.
const PROPERTY: &str = "endpoint_url";

/// Drops the variables that name endpoints. To be called first thing in a program, before it has
/// threads.
pub fn ignore_endpoints() -> std::io::Result<()> {
    process::unset_variables(VARIABLES)
}

/// The profile files of this host, without endpoints.
pub fn profile_files() -> EnvConfigFiles {
    let config = read("AWS_CONFIG_FILE", "~/.aws/config");
    let credentials = read("AWS_SHARED_CREDENTIALS_FILE", "~/.aws/credentials");
    EnvConfigFiles::builder()
        .with_contents(EnvConfigFileKind::Config, config)
        .with_contents(EnvConfigFileKind::Credentials, credentials)
        .build()
}

/// A profile file where the AWS library looks for it. One that cannot be read counts as empty, as it
/// does there.
fn read(variable: &str, default: &str) -> String {
    let path = std::env::var_os(variable).unwrap_or_else(|| default.into());
    without_endpoints(&std::fs::read_to_string(expand(path)).unwrap_or_default())
}

/// A path that begins with `~` begins at home, if there is one.
fn expand(path: OsString) -> PathBuf {
    let path = PathBuf::from(path);
    match (path.strip_prefix("~"), std::env::var_os("HOME")) {
        (Ok(rest), Some(home)) => PathBuf::from(home).join(rest),
        _ => path,
    }
}

/// Gives the properties that name endpoints another name, also those within others. A line that were
/// left out would make its continuation one of the property before.
fn without_endpoints(text: &str) -> String {
    let line = |line: &str| {
        let mut parts: Vec<String> = line.split('=').map(str::to_owned).collect();
        let values = parts.len() - 1;
        for part in &mut parts[..values] {
            if part.trim().eq_ignore_ascii_case(PROPERTY) {
                let start = part.len() - part.trim_start().len();
                part.insert_str(start, "ignored_");
            }
        }
        parts.join("=") + "\n"
    };
    text.lines().map(line).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn profiles_lose_their_endpoints_and_nothing_else() {
        let text = "[profile a]\nrole_arn = arn:aws:iam::1:role/r\nEndpoint_URL=http://x\n  and=more\n\
                    credential_process = get --endpoint_url x --b=c # endpoint_url = y\nservices = s\n\
                    [services s]\nsts =\n\t endpoint_url\t= http://x?endpoint_url\n\
                    sso = endpoint_url = http://x\r\nendpoint_url\n";
        let kept = "[profile a]\nrole_arn = arn:aws:iam::1:role/r\nignored_Endpoint_URL=http://x\n  and=more\n\
                    credential_process = get --endpoint_url x --b=c # endpoint_url = y\nservices = s\n\
                    [services s]\nsts =\n\t ignored_endpoint_url\t= http://x?endpoint_url\n\
                    sso = ignored_endpoint_url = http://x\nendpoint_url\n";
        assert_eq!(without_endpoints(text), kept);
        assert_eq!(without_endpoints(""), "");
    }
}
