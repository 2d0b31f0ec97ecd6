//! The CustomResourceDefinitions of the mesh's own kinds, as `mesh-control definitions` prints them.
//!
//! What one object by itself can get wrong is refused when it is written, in the words of the reader of
//! manifests. What only other objects can tell (a service that isn't there) is told in the status.

use mesh_api::kinds::{GROUP, OWN_KINDS, OwnKind, VERSION};
use mesh_core::budget::FIELDS;
use mesh_core::policy::MESH_NAMESPACE;
use mesh_core::traffic::OutlierDetection;
use serde_json::{Map, Value, json};

const LABEL: &str = "^[a-z0-9]([-a-z0-9]*[a-z0-9])?$";
const NAME: &str = "^[a-z0-9]([-a-z0-9]*[a-z0-9])?([.][a-z0-9]([-a-z0-9]*[a-z0-9])?)*$";
/// 1 to 65535.
const PORT: &str =
    "([1-9][0-9]{0,3}|[1-5][0-9]{4}|6[0-4][0-9]{3}|65[0-4][0-9]{2}|655[0-2][0-9]|6553[0-5])";
/// Most entries of a list, which bounds what checking a policy costs the API server.
const MAX_ITEMS: u32 = 256;
/// Most entries of one of a Revocation's lists.
const MAX_REVOKED: u32 = 1024;
const SPIFFE_ID: &str = "^spiffe://[^/]+/ns/[^/]+/sa/[^/]+$";
/// The longest time that a policy can name, in milliseconds.
const MAX_MS: u64 = 24 * 3600 * 1000;

/// A kind as the API server is to know it.
struct Definition {
    kind: OwnKind,
    short: &'static str,
    about: &'static str,
    spec: Value,
    /// Printer columns: name and path.
    columns: &'static [(&'static str, &'static str)],
}

/// All definitions, and the admission policy for what a definition can't check: objects ready to be
/// applied.
#[must_use]
pub fn definitions() -> Vec<Value> {
    let kinds = [
        Definition {
            kind: OWN_KINDS[0],
            short: "nmauthz",
            about: "Who may talk to whom. Nothing is allowed that no policy allows, and Deny comes before Allow.",
            spec: authorization(),
            columns: &[("Direction", ".spec.direction"), ("Action", ".spec.action")],
        },
        Definition {
            kind: OWN_KINDS[1],
            short: "nmauthn",
            about: "Whether pods take inbound connections without mutual TLS. The nearest scope wins.",
            spec: authentication(),
            columns: &[("Mode", ".spec.mode")],
        },
        Definition {
            kind: OWN_KINDS[2],
            short: "nmsp",
            about: "How the endpoints of a service are chosen and watched.",
            spec: service_policy(),
            columns: &[
                ("Service", ".spec.service"),
                ("Balancing", ".spec.balancing"),
            ],
        },
        Definition {
            kind: OWN_KINDS[3],
            short: "nmwb",
            about: "What the worker of each pod may use. The nearest scope that gives a field wins.",
            spec: budget(),
            columns: &[
                ("Memory", ".spec.memoryMaxMib"),
                ("Connections", ".spec.connections"),
            ],
        },
        Definition {
            kind: OWN_KINDS[4],
            short: "nmrev",
            about: "What is not to be believed any more, on every node: identities, nodes, serial numbers.",
            spec: revocation(),
            columns: &[],
        },
    ];
    let mut objects: Vec<Value> = kinds.iter().map(definition).collect();
    objects.extend(what_is_for_the_mesh_is_from_its_namespace());
    objects
}

/// The same as one manifest: JSON objects, which are YAML documents.
#[must_use]
pub fn manifest() -> String {
    let objects = definitions().into_iter();
    objects.map(|object| format!("---\n{object:#}\n")).collect()
}

fn definition(of: &Definition) -> Value {
    let OwnKind { name, plural } = of.kind;
    let mut columns: Vec<Value> = of
        .columns
        .iter()
        .map(|(name, path)| json!({"name": name, "type": "string", "jsonPath": path}))
        .collect();
    columns.extend([
        json!({"name": "Accepted", "type": "string", "jsonPath": ".status.conditions[?(@.type==\"Accepted\")].status"}),
        json!({"name": "InForce", "type": "string", "jsonPath": ".status.conditions[?(@.type==\"InForce\")].status"}),
        json!({"name": "Nodes", "type": "string", "jsonPath": ".status.nodes"}),
        json!({"name": "Age", "type": "date", "jsonPath": ".metadata.creationTimestamp"}),
    ]);
    let schema = json!({
        "type": "object",
        "description": of.about,
        "required": ["spec"],
        "properties": {"spec": of.spec, "status": status()},
    });
    json!({
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {
            "name": format!("{plural}.{GROUP}"),
            "labels": {
                "app.kubernetes.io/part-of": "nodemesh",
                "app.kubernetes.io/version": env!("CARGO_PKG_VERSION"),
            },
        },
        "spec": {
            "group": GROUP,
            "names": {
                "kind": name,
                "listKind": format!("{name}List"),
                "plural": plural,
                "singular": name.to_lowercase(),
                "shortNames": [of.short],
                "categories": ["nodemesh"],
            },
            "scope": "Namespaced",
            "versions": [{
                "name": VERSION,
                "served": true,
                "storage": true,
                "schema": {"openAPIV3Schema": schema},
                "subresources": {"status": {}},
                "additionalPrinterColumns": columns,
            }],
        },
    })
}

fn object(about: &str, required: &[&str], properties: Value, rules: &[(&str, &str)]) -> Value {
    let mut object = json!({"type": "object", "description": about});
    object["properties"] = properties;
    if !required.is_empty() {
        object["required"] = json!(required);
    }
    if !rules.is_empty() {
        let rules = rules.iter();
        let rules = rules.map(|(rule, message)| json!({"rule": rule, "message": message}));
        object["x-kubernetes-validations"] = rules.collect();
    }
    object
}

fn text(about: &str, max: u32, pattern: &str) -> Value {
    json!({"type": "string", "description": about, "minLength": 1, "maxLength": max, "pattern": pattern})
}

fn one_of(about: &str, values: &[&str]) -> Value {
    json!({"type": "string", "description": about, "enum": values})
}

fn list(about: &str, items: Value) -> Value {
    let mut list = json!({
        "type": "array", "description": about, "minItems": 1, "maxItems": MAX_ITEMS,
        "x-kubernetes-list-type": "atomic",
    });
    list["items"] = items;
    list
}

fn integer(about: &str, low: u64, high: u64) -> Value {
    json!({"type": "integer", "format": "int64", "description": about, "minimum": low, "maximum": high})
}

fn labels(about: &str) -> Value {
    json!({
        "type": "object", "description": about, "minProperties": 1, "maxProperties": 64,
        "additionalProperties": {"type": "string", "maxLength": 63},
    })
}

/// Whom a policy is for.
fn target() -> Value {
    object(
        "Whom it is for, always in its own namespace: exactly one of service, labels, mesh. Without target it is for the whole namespace.",
        &[],
        json!({
            "service": text("The pods of this service.", 63, LABEL),
            "labels": labels("The pods that have all these labels."),
            "mesh": {
                "type": "boolean", "enum": [true],
                "description": format!("All pods of the mesh; only from namespace {MESH_NAMESPACE}."),
            },
        }),
        &[(
            "[has(self.mesh), has(self.service), has(self.labels)].filter(given, given).size() == 1",
            "give exactly one of mesh, service, labels, or leave target out for the whole namespace",
        )],
    )
}

fn authorization() -> Value {
    let peer = object(
        "A peer: all that is given must hold.",
        &[],
        json!({
            "identity": text("It proves this SPIFFE ID.", 512, SPIFFE_ID),
            "namespace": text("It has this namespace in its proven identity.", 63, LABEL),
            "serviceAccount": text("It runs as this service account of the namespace beside it.", 253, NAME),
            "service": text(
                "It belongs to this service, given as name or namespace/name. Outbound also: it was dialled by it.",
                127,
                "^([a-z0-9]([-a-z0-9]*[a-z0-9])?/)?[a-z0-9]([-a-z0-9]*[a-z0-9])?$",
            ),
            "labels": labels("It has all these labels; without namespace beside them, in the policy's own namespace."),
            "cidr": {
                "type": "string", "maxLength": 49,
                "description": "It has an address in this block, such as 10.0.0.0/8 or fd00::/8.",
                "x-kubernetes-validations": [
                    {
                        "rule": "isCIDR(self) && cidr(self) == cidr(self).masked()",
                        "message": "is not an address block such as 10.0.0.0/8 or fd00::/8, without bits set beyond its length",
                    },
                    {
                        "rule": "!self.matches('^::[fF]{4}:')",
                        "message": "is IPv4 in IPv6's form: write it as IPv4",
                    },
                ],
            },
        }),
        &[
            (
                "has(self.identity) || has(self.namespace) || has(self.serviceAccount) || has(self.service) || has(self.labels) || has(self.cidr)",
                "empty: give at least one of identity, namespace, serviceAccount, service, labels, cidr",
            ),
            (
                "!(has(self.identity) && has(self.serviceAccount))",
                "identity says it already: give one of the two",
            ),
            (
                "!has(self.serviceAccount) || has(self.namespace) || has(self.identity)",
                "serviceAccount needs namespace beside it: service accounts of one name are in many",
            ),
        ],
    );
    let port = json!({
        "x-kubernetes-int-or-string": true,
        "description": "A port of the destination's pod: 80, which is TCP's, or 53/UDP, or UDP for all of its ports.",
        "x-kubernetes-validations": [{
            "rule": format!("type(self) == int ? self >= 1 && self <= 65535 : self.matches('^({PORT}/)?(TCP|UDP)$')"),
            "message": "is not a port: 1 to 65535, alone or with /TCP or /UDP, or TCP or UDP for all ports",
        }],
        "maxLength": 9,
    });
    let rule = object(
        "It matches if any of its peers does, on any of its ports.",
        &[],
        json!({
            "peers": list("Without it the rule is for every member of the mesh, and in a Deny for everybody.", peer),
            "ports": list("Without it the rule is for every port of TCP, and in a Deny of UDP as well.", port),
        }),
        &[],
    );
    let mut rules = list(
        "Any of these matches. A rule {} matches every member of the mesh (Deny: everybody) on every port.",
        rule,
    );
    rules["maxItems"] = json!(64);
    object(
        "Which flows of whom are allowed or denied.",
        &["direction", "action", "rules"],
        json!({
            "target": target(),
            "direction": one_of(
                "Inbound is decided at the destination, the peer being the source; Outbound at the source, the peer being the destination. A flow needs both.",
                &["Inbound", "Outbound"],
            ),
            "action": one_of("Deny comes before Allow.", &["Allow", "Deny"]),
            "rules": rules,
        }),
        &[],
    )
}

fn authentication() -> Value {
    let mode = "Strict takes mutual TLS only, which is also how it is without any policy; Permissive takes plain TCP as well, as far as an AuthorizationPolicy names the caller's address.";
    object(
        "How inbound connections are taken.",
        &[],
        json!({
            "target": target(),
            "mode": one_of(mode, &["Strict", "Permissive"]),
            "ports": {
                "type": "object", "minProperties": 1, "maxProperties": 64,
                "description": "The same for single ports of the pod, by number.",
                "additionalProperties": one_of(mode, &["Strict", "Permissive"]),
                "x-kubernetes-validations": [{
                    "rule": format!("self.all(port, port.matches('^{PORT}$'))"),
                    "message": "each key is a port from 1 to 65535",
                }],
            },
        }),
        &[(
            "has(self.mode) || has(self.ports)",
            "says nothing: give mode, ports, or both, with Strict or Permissive",
        )],
    )
}

fn with_default(mut schema: Value, default: impl Into<Value>) -> Value {
    schema["default"] = default.into();
    schema
}

fn service_policy() -> Value {
    let default = OutlierDetection::default();
    let (base, max) = (
        default.base_ejection.as_secs() * 1000,
        default.max_ejection.as_secs() * 1000,
    );
    let outliers = object(
        "An endpoint that fails so many connections in a row is left alone for a while, each time longer.",
        &[],
        json!({
            "consecutiveFailures": with_default(
                integer("Failures in a row; 0 never leaves one alone.", 0, u32::MAX.into()),
                default.consecutive_failures,
            ),
            "baseEjectionMs": with_default(integer("How long at first, in milliseconds.", 1, MAX_MS), base),
            "maxEjectionMs": with_default(integer("How long at most, in milliseconds.", 1, MAX_MS), max),
            "maxEjectedPercent": with_default(
                integer("How many of the endpoints at a time, at most, in percent.", 0, 100),
                default.max_ejected_percent,
            ),
        }),
        &[(
            "self.baseEjectionMs <= self.maxEjectionMs",
            "baseEjectionMs is not from 1 to maxEjectionMs",
        )],
    );
    let http = object(
        "GET; a status from 200 to 399 is good.",
        &["path"],
        json!({
            "path": text("The path that is asked for.", 1024, "^/[!-~]*$"),
            "host": text("The Host header; the endpoint's address without it.", 255, "^[A-Za-z0-9._:\\[\\]-]+$"),
        }),
        &[],
    );
    let check = object(
        "A check that each endpoint's own worker makes.",
        &["port"],
        json!({
            "port": integer("A port of the service; the endpoint is asked at its own port for it.", 1, 65_535),
            "tcp": object("A connection is enough.", &[], json!({}), &[]),
            "http": http,
            "intervalMs": with_default(integer("Between two checks, in milliseconds.", 100, MAX_MS), 1000),
            "timeoutMs": with_default(integer("For one check, in milliseconds.", 1, MAX_MS), 500),
            "unhealthyThreshold": with_default(integer("Failures in a row that make it unhealthy.", 1, 100), 2),
            "healthyThreshold": with_default(integer("Successes in a row that make it healthy again.", 1, 100), 2),
        }),
        &[
            (
                "has(self.tcp) != has(self.http)",
                "give one of tcp: {} and http: {path: /}",
            ),
            (
                "self.timeoutMs <= self.intervalMs",
                "timeoutMs is not from 1 to intervalMs",
            ),
        ],
    );
    let mut checks = list("At most 8.", check);
    checks["maxItems"] = json!(8);
    object(
        "How the endpoints of a service are chosen and watched.",
        &["service"],
        json!({
            "service": text("The service, in the policy's namespace. One policy for each.", 63, LABEL),
            "balancing": one_of(
                "LeastRequests: of two picked at random the one with fewer connections of this worker.",
                &["LeastRequests", "RoundRobin"],
            ),
            "locality": one_of(
                "Nearest: the same node, zone, region, in this order.",
                &["Nearest", "None"],
            ),
            "outlierDetection": outliers,
            "healthChecks": checks,
        }),
        &[],
    )
}

fn budget() -> Value {
    let mut properties = Map::new();
    properties.insert("target".to_owned(), target());
    let mut given = Vec::new();
    for field in FIELDS {
        let (low, high) = (field.low, field.high);
        let about = match field.takes_none() {
            true => format!("From {low} to {high}; 0 is no limit, and the default."),
            false => format!("From {low} to {high}; {} by default.", field.default),
        };
        let least = if field.takes_none() { 0 } else { low };
        let mut schema = integer(&about, least.into(), high.into());
        if field.takes_none() {
            schema["x-kubernetes-validations"] = json!([{
                "rule": format!("self == 0 || self >= {low}"),
                "message": format!("is not from {low} to {high}, or 0 for no limit"),
            }]);
        }
        properties.insert(field.name.to_owned(), schema);
        given.push(format!("has(self.{})", field.name));
    }
    let names: Vec<_> = FIELDS.iter().map(|field| field.name).collect();
    let message = format!(
        "says nothing: give at least one of {}; defaults hold for the rest",
        names.join(", ")
    );
    object(
        "What a worker may use.",
        &[],
        Value::Object(properties),
        &[(&given.join(" || "), &message)],
    )
}

fn revocation() -> Value {
    let of = |about: &str, item: Value| {
        let mut list = list(about, item);
        list["minItems"] = json!(0);
        list["maxItems"] = json!(MAX_REVOKED);
        list
    };
    let identity = text("A SPIFFE ID.", 512, SPIFFE_ID);
    let serial = text(
        "Hex digits, as openssl x509 -serial prints them; colons are ignored.",
        128,
        "^:*[0-9A-Fa-f][0-9A-Fa-f:]*$",
    );
    let rule = ["identities", "nodes", "serials"]
        .map(|field| format!("(has(self.{field}) && self.{field}.size() > 0)"))
        .join(" || ");
    object(
        "What is revoked, for as long as the object is there.",
        &[],
        json!({
            "identities": of("All certificates of these workload identities.", identity),
            "nodes": of("All that these nodes may say or sign for.", text("A node's name.", 253, NAME)),
            "serials": of("Certificates by their serial numbers.", serial),
        }),
        &[(&rule, "revokes nothing: give identities, nodes or serials")],
    )
}

fn status() -> Value {
    let condition = json!({
        "type": "object",
        "required": ["type", "status", "lastTransitionTime", "reason", "message"],
        "properties": {
            "type": {"type": "string", "maxLength": 316},
            "status": {"type": "string", "enum": ["True", "False", "Unknown"]},
            "observedGeneration": {"type": "integer", "format": "int64"},
            "lastTransitionTime": {"type": "string", "format": "date-time"},
            "reason": {"type": "string", "maxLength": 1024},
            "message": {"type": "string", "maxLength": 32768},
        },
    });
    json!({
        "type": "object",
        "description": "What the control component makes of it.",
        "properties": {
            "conditions": {
                "type": "array", "items": condition,
                "description": "Accepted: whether it can be read, and if not what is wrong; Complete: whether all that it names is there; InForce: whether the workers of all pods that it is for have it, and if not which.",
                "x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["type"],
            },
            "nodes": {
                "type": "string",
                "description": "On how many nodes it is in force, of those with pods that it is for.",
            },
        },
    })
}

/// A definition's own rules don't know the namespace.
fn what_is_for_the_mesh_is_from_its_namespace() -> Vec<Value> {
    let home = format!("object.metadata.namespace == '{MESH_NAMESPACE}'");
    let target = admission(
        "mesh-target.nodemesh.dev",
        &[
            "authorizationpolicies",
            "authenticationpolicies",
            "workerbudgets",
        ],
        &format!("{home} || !has(object.spec.target) || !has(object.spec.target.mesh)"),
        &format!("only policies in namespace {MESH_NAMESPACE} can be for the whole mesh"),
    );
    let revocation = admission(
        "revocation.nodemesh.dev",
        &["revocations"],
        &home,
        &format!("a Revocation is for the whole mesh: it must be in namespace {MESH_NAMESPACE}"),
    );
    [target, revocation].concat()
}

/// A policy of admission, and what puts it into force.
fn admission(name: &str, resources: &[&str], expression: &str, message: &str) -> [Value; 2] {
    let policy = json!({
        "apiVersion": "admissionregistration.k8s.io/v1",
        "kind": "ValidatingAdmissionPolicy",
        "metadata": {"name": name},
        "spec": {
            "failurePolicy": "Fail",
            "matchConstraints": {"resourceRules": [{
                "apiGroups": [GROUP], "apiVersions": ["*"], "operations": ["CREATE", "UPDATE"],
                "resources": resources,
            }]},
            "validations": [{"expression": expression, "message": message}],
        },
    });
    let binding = json!({
        "apiVersion": "admissionregistration.k8s.io/v1",
        "kind": "ValidatingAdmissionPolicyBinding",
        "metadata": {"name": name},
        "spec": {"policyName": name, "validationActions": ["Deny"]},
    });
    [policy, binding]
}
