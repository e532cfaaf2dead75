//! What a request asks for: its path, its query, and who asks.

use std::sync::Arc;

use axum::extract::Query as AxumQuery;
use http::{HeaderMap, Method, Uri, header};

use crate::failure::{Failure, Result};
use crate::hooks::UserInfo;
use crate::registry::Served;
use crate::server::Inner;

/// The resource that a path names.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Target {
    /// Group, empty for core.
    pub group: String,
    /// Version.
    pub version: String,
    /// Namespace of the object or list.
    pub namespace: Option<String>,
    /// Plural.
    pub resource: String,
    /// Object name.
    pub name: Option<String>,
    /// Everything after the name.
    pub subresource: Option<String>,
    /// Old-style `/watch/` path.
    pub watch: bool,
}

impl Target {
    /// Reads `/api/V/…` and `/apis/G/V/…`; `None` for every other path and for the discovery documents.
    pub fn parse(path: &str) -> Option<Self> {
        let mut parts = path.split('/').filter(|part| !part.is_empty());
        let (group, version) = match parts.next()? {
            "api" => (String::new(), parts.next()?),
            "apis" => (decode(parts.next()?), parts.next()?),
            _ => return None,
        };
        let mut rest: Vec<String> = parts.map(decode).collect();
        let watch = rest.first().is_some_and(|first| first == "watch");
        if watch {
            rest.remove(0);
        }
        let mut target = Self {
            group,
            version: version.to_owned(),
            watch,
            ..Self::default()
        };
        let mut rest = rest.into_iter().peekable();
        let first = rest.next()?;
        let of_namespace = |next: &str| matches!(next, "status" | "finalize");
        if first == "namespaces" {
            let namespace = rest.next();
            match rest.peek() {
                Some(next) if !of_namespace(next) => {
                    target.namespace = namespace;
                    target.resource = rest.next()?;
                    target.name = rest.next();
                }
                _ => {
                    target.resource = first;
                    target.name = namespace;
                }
            }
        } else {
            target.resource = first;
            target.name = rest.next();
        }
        let subresource = rest.collect::<Vec<_>>().join("/");
        target.subresource = (!subresource.is_empty()).then_some(subresource);
        Some(target)
    }

    /// The Kubernetes verb.
    pub fn verb(&self, method: &Method, query: &Query) -> &'static str {
        match *method {
            Method::GET | Method::HEAD if self.name.is_some() && !self.watch => "get",
            Method::GET | Method::HEAD if self.watch || query.flag("watch") => "watch",
            Method::GET | Method::HEAD => "list",
            Method::POST => "create",
            Method::PUT => "update",
            Method::PATCH => "patch",
            Method::DELETE if self.name.is_some() => "delete",
            Method::DELETE => "deletecollection",
            _ => "",
        }
    }
}

fn decode(part: &str) -> String {
    let mut bytes = Vec::with_capacity(part.len());
    let mut rest = part.as_bytes();
    while let [first, tail @ ..] = rest {
        let hex = |b: u8| char::from(b).to_digit(16).and_then(|d| u8::try_from(d).ok());
        match (first, tail) {
            (b'%', [high, low, after @ ..]) if hex(*high).is_some() && hex(*low).is_some() => {
                bytes.push(hex(*high).unwrap_or(0) * 16 + hex(*low).unwrap_or(0));
                rest = after;
            }
            _ => {
                bytes.push(*first);
                rest = tail;
            }
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

/// The parameters after `?`.
#[derive(Clone, Debug, Default)]
pub struct Query(Vec<(String, String)>);

impl Query {
    /// Reads the query of a URI.
    ///
    /// # Errors
    /// 400 if it is malformed.
    pub fn parse(uri: &Uri) -> Result<Self> {
        let AxumQuery(pairs) = AxumQuery::try_from_uri(uri)
            .map_err(|error| Failure::bad_request(format!("cannot read the query: {error}")))?;
        Ok(Self(pairs))
    }

    /// The first value of a parameter; absent if empty.
    pub fn get(&self, name: &str) -> Option<&str> {
        self.0
            .iter()
            .find(|(key, _)| key == name)
            .map(|(_, value)| value.as_str())
            .filter(|value| !value.is_empty())
    }

    /// All values of a parameter.
    pub fn all<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a str> {
        self.0
            .iter()
            .filter(move |(key, _)| key == name)
            .map(|(_, value)| value.as_str())
    }

    /// Whether a parameter is `true`, `1` or given without a value.
    pub fn flag(&self, name: &str) -> bool {
        self.0.iter().any(|(key, value)| {
            key == name && matches!(value.as_str(), "" | "1" | "t" | "T" | "true" | "True" | "TRUE")
        })
    }

    /// A whole number.
    ///
    /// # Errors
    /// 400 if it is none.
    pub fn number(&self, name: &str) -> Result<Option<u64>> {
        self.get(name)
            .map(|value| {
                value.parse().map_err(|_| {
                    Failure::bad_request(format!("{name}: Invalid value: \"{value}\": must be a whole number"))
                })
            })
            .transpose()
    }
}

/// What to do about fields that the schema does not know.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FieldValidation {
    /// Drop them.
    Ignore,
    /// Drop them and warn.
    Warn,
    /// Refuse the request.
    Strict,
}

/// A request to one resource on its way through the server.
pub struct Context {
    /// The server.
    pub server: Arc<Inner>,
    /// Who asks.
    pub user: UserInfo,
    /// The resource.
    pub served: Arc<Served>,
    /// Namespace of the path.
    pub namespace: Option<String>,
    /// Subresource of the path.
    pub subresource: Option<String>,
    /// Nothing is stored.
    pub dry_run: bool,
    /// About unknown fields.
    pub validation: FieldValidation,
    /// Field manager.
    pub manager: String,
    /// For `Warning` headers.
    pub warnings: Vec<String>,
}

impl Context {
    /// A request from outside.
    ///
    /// # Errors
    /// 400 for options that do not exist.
    pub fn new(
        server: &Arc<Inner>,
        user: UserInfo,
        served: Arc<Served>,
        target: &Target,
        query: &Query,
        headers: &HeaderMap,
    ) -> Result<Self> {
        if let Some(value) = query.all("dryRun").find(|value| !matches!(*value, "All" | "")) {
            let message = format!("dryRun: Unsupported value: \"{value}\": supported values: \"All\"");
            return Err(Failure::bad_request(message));
        }
        let validation = match query.get("fieldValidation") {
            None | Some("Warn") => FieldValidation::Warn,
            Some("Ignore") => FieldValidation::Ignore,
            Some("Strict") => FieldValidation::Strict,
            Some(other) => {
                let supported = "supported values: \"Ignore\", \"Strict\", \"Warn\"";
                return Err(Failure::bad_request(format!(
                    "fieldValidation: Unsupported value: \"{other}\": {supported}"
                )));
            }
        };
        let agent = headers
            .get(header::USER_AGENT)
            .and_then(|agent| agent.to_str().ok())
            .unwrap_or_default();
        let agent = agent
            .split('/')
            .next()
            .filter(|agent| !agent.is_empty())
            .unwrap_or("unknown");
        let mut context = Self {
            server: server.clone(),
            user,
            namespace: target.namespace.clone(),
            subresource: target.subresource.clone(),
            dry_run: query.get("dryRun").is_some(),
            validation,
            manager: query.get("fieldManager").unwrap_or(agent).to_owned(),
            warnings: Vec::new(),
            served,
        };
        context.warnings.extend(context.served.warning.clone());
        Ok(context)
    }

    /// A request of the server's own controllers.
    pub fn internal(server: &Arc<Inner>, served: Arc<Served>, namespace: Option<&str>, manager: &str) -> Self {
        Self {
            server: server.clone(),
            user: UserInfo::controller(manager),
            namespace: namespace.filter(|namespace| !namespace.is_empty()).map(str::to_owned),
            subresource: None,
            dry_run: false,
            validation: FieldValidation::Ignore,
            manager: manager.to_owned(),
            warnings: Vec::new(),
            served,
        }
    }

    /// The namespace, empty for cluster-wide kinds.
    pub fn namespace(&self) -> &str {
        self.namespace.as_deref().unwrap_or_default()
    }

    /// 404 for an object of this resource.
    pub fn not_found(&self, name: &str) -> Failure {
        Failure::not_found(&self.served.info.group, &self.served.info.plural, name)
    }

    /// 409: changed meanwhile.
    pub fn modified(&self, name: &str) -> Failure {
        Failure::modified(&self.served.info.group, &self.served.info.plural, name)
    }

    /// 409 with another text.
    pub fn conflict(&self, name: &str, why: &str) -> Failure {
        Failure::conflict(&self.served.info.group, &self.served.info.plural, name, why)
    }

    /// 403.
    pub fn forbidden(&self, name: &str, why: &str) -> Failure {
        Failure::forbidden(&self.served.info.group, &self.served.info.plural, name, why)
    }

    /// 422.
    pub fn invalid(
        &self,
        name: &str,
        causes: Vec<k8s_openapi::apimachinery::pkg::apis::meta::v1::StatusCause>,
    ) -> Failure {
        Failure::invalid(&self.served.info.group, &self.served.info.kind, name, causes)
    }
}
