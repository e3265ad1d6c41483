//! STS, as far as asking "who am I".

use super::api::{Fault, uuid};
use super::http::{Request, Response};
use super::service::authenticate;
use super::world::World;

/// Answers a request of the query protocol.
pub fn serve(world: &World, request: &Request) -> Response {
    let body = String::from_utf8_lossy(&request.body);
    let action = body.split('&').find_map(|pair| pair.strip_prefix("Action=")).unwrap_or_default();
    let id = uuid();
    let answer = match (authenticate(world, request, "sts"), action) {
        (Err(fault), _) => Err(renamed(fault)),
        (Ok(who), "GetCallerIdentity") => Ok(who),
        (Ok(_), _) => Err(Fault::client("InvalidAction", "Could not find this operation")),
    };
    let space = "https://sts.amazonaws.com/doc/2011-06-15/";
    let (status, xml) = match answer {
        Ok(who) => {
            let (arn, account) = (who.arn(&world.account), &world.account);
            let user = format!("AIDAFAKE{}", who.user.to_uppercase());
            let xml = format!(
                "<GetCallerIdentityResponse xmlns=\"{space}\"><GetCallerIdentityResult>\
                 <Arn>{arn}</Arn><UserId>{user}</UserId><Account>{account}</Account>\
                 </GetCallerIdentityResult><ResponseMetadata><RequestId>{id}</RequestId>\
                 </ResponseMetadata></GetCallerIdentityResponse>"
            );
            (200, xml)
        }
        Err(Fault { status, code, message }) => {
            let message = message.replace('&', "&amp;").replace('<', "&lt;");
            let xml = format!(
                "<ErrorResponse xmlns=\"{space}\"><Error><Type>Sender</Type><Code>{code}</Code>\
                 <Message>{message}</Message></Error><RequestId>{id}</RequestId></ErrorResponse>"
            );
            (status, xml)
        }
    };
    let headers = vec![
        ("x-amzn-requestid".to_owned(), id),
        ("content-type".to_owned(), "text/xml".to_owned()),
    ];
    Response { status, headers, body: xml.into_bytes() }
}

/// STS has older names for the same.
fn renamed(fault: Fault) -> Fault {
    let code = match fault.code.as_str() {
        "UnrecognizedClientException" => "InvalidClientTokenId",
        "InvalidSignatureException" => "SignatureDoesNotMatch",
        "ExpiredTokenException" => "ExpiredToken",
        "IncompleteSignatureException" => "IncompleteSignature",
        _ => "MissingAuthenticationToken",
    };
    Fault { status: 403, code: code.to_owned(), message: fault.message }
}
