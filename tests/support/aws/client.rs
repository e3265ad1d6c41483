//! A client for tests of the fake: signs a call, sends it, reads the answer.

use std::io::{self, BufReader};
use std::net::TcpStream;

use serde_json::Value;

use super::http::{Request, Response};
use super::principals::{ACCESS_KEY, SECRET_KEY};
use super::sign;

/// Where to send calls, and as whom.
#[derive(Clone)]
pub struct Client {
    /// `127.0.0.1:PORT`.
    pub host: String,
    /// The Region in the scope of signatures.
    pub region: String,
    /// Id of the access key.
    pub access_key: String,
    /// Its secret.
    pub secret: String,
    /// Session token.
    pub token: Option<String>,
}

impl Client {
    /// Calls `endpoint` with the access key that may do everything.
    pub fn new(endpoint: &str, region: &str) -> Client {
        Client {
            host: endpoint.trim_start_matches("http://").to_owned(),
            region: region.to_owned(),
            access_key: ACCESS_KEY.to_owned(),
            secret: SECRET_KEY.to_owned(),
            token: None,
        }
    }

    /// The same as somebody else.
    pub fn as_user(&self, access_key: &str, secret: &str) -> Client {
        let (access_key, secret) = (access_key.to_owned(), secret.to_owned());
        Client { access_key, secret, ..self.clone() }
    }

    /// A signed request to KMS.
    pub fn request(&self, operation: &str, body: &Value) -> Request {
        self.request_to(("TrentService", "kms"), operation, body)
    }

    /// A signed request to a service, by the prefix of its targets and its name in signatures.
    fn request_to(&self, service: (&str, &str), operation: &str, body: &Value) -> Request {
        let (target, signing) = service;
        let mut request = Request {
            method: "POST".to_owned(),
            target: "/".to_owned(),
            headers: vec![
                ("host".to_owned(), self.host.clone()),
                ("content-type".to_owned(), "application/x-amz-json-1.1".to_owned()),
                ("x-amz-target".to_owned(), format!("{target}.{operation}")),
            ],
            body: body.to_string().into_bytes(),
        };
        if let Some(token) = &self.token {
            request.headers.push(("x-amz-security-token".to_owned(), token.clone()));
        }
        sign::sign(&mut request, (&self.access_key, &self.secret), &self.region, signing);
        request
    }

    /// Sends a request on a connection of its own.
    pub fn send(&self, request: &Request) -> io::Result<Response> {
        let mut stream = TcpStream::connect(&self.host)?;
        request.write(&mut stream)?;
        Response::read(&mut BufReader::new(stream))
    }

    /// Calls an operation of KMS: the answer, or the name of the exception.
    pub fn call(&self, operation: &str, body: &Value) -> Result<Value, String> {
        self.outcome(&self.request(operation, body))
    }

    /// Calls an operation of CloudHSM.
    pub fn call_cloudhsm(&self, operation: &str, body: &Value) -> Result<Value, String> {
        self.outcome(&self.request_to(("BaldrApiService", "cloudhsm"), operation, body))
    }

    fn outcome(&self, request: &Request) -> Result<Value, String> {
        let response = self.send(request);
        let response = response.map_err(|error| format!("{:?}", error.kind()))?;
        let value = match response.body.is_empty() {
            true => Value::Null,
            false => serde_json::from_slice(&response.body).map_err(|error| error.to_string())?,
        };
        match response.status {
            200 => Ok(value),
            _ => Err(value["__type"].as_str().unwrap_or_default().to_owned()),
        }
    }

    /// Sends a control request; an empty one asks for the state.
    pub fn control(&self, body: Option<&Value>) -> io::Result<Value> {
        let request = Request {
            method: if body.is_some() { "POST" } else { "GET" }.to_owned(),
            target: "/_control".to_owned(),
            headers: vec![("host".to_owned(), self.host.clone())],
            body: body.map(|body| body.to_string().into_bytes()).unwrap_or_default(),
        };
        let response = self.send(&request)?;
        serde_json::from_slice(&response.body).map_err(io::Error::other)
    }
}
