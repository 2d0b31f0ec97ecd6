//! Why a flow was refused or failed: one list for kernel programs, workers, logs and
//! metrics, each with a stable code and a sentence for the operator.

use std::fmt;

macro_rules! reasons {
    ($($(#[doc = $doc:literal])+ $name:ident = $code:literal, $sentence:literal;)+) => {
        /// A reason for a refusal or a failure.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum Reason {
            $($(#[doc = $doc])+ $name,)+
        }

        impl Reason {
            /// Every reason.
            pub const ALL: &[Self] = &[$(Self::$name,)+];

            /// The stable code, used as a metric's label and in logs.
            #[must_use]
            pub const fn code(self) -> &'static str {
                match self { $(Self::$name => $code,)+ }
            }

            /// What happened and what would change it, for the operator.
            #[must_use]
            pub const fn sentence(self) -> &'static str {
                match self { $(Self::$name => $sentence,)+ }
            }
        }
    };
}

reasons! {
    /// connect to one of the worker's own ports.
    ConnectReservedPort = "connect_reserved_port",
        "the destination port is one of the mesh's own (15001, 15006, 15008, 15053); apps can't dial those";
    /// connect to a family the pod has no route for.
    ConnectNoRoute = "connect_no_route",
        "the pod has no address of the destination's family; without the mesh this connect fails as well";
    /// connect from a socket bound to a device.
    ConnectBoundDevice = "connect_bound_device",
        "the socket is bound to a device (SO_BINDTODEVICE), which capture can't honour; remove the option";
    /// connect beyond the pod's quota of unfinished connections.
    ConnectQuota = "connect_quota",
        "the pod has as many unfinished connections as its quota allows; its worker may be stalled";
    /// connect without memory for the original destination.
    ConnectNoStorage = "connect_no_storage",
        "the kernel had no memory for the socket's original destination";
    /// bind to a reserved port.
    BindReservedPort = "bind_reserved_port",
        "the port is one of the mesh's own (15001, 15006, 15008, 15053); choose another";
    /// The connection's tuple could not be published.
    PublishFailed = "publish_failed",
        "the connection's tuple could not be published to the worker; the worker closes it";
    /// Inbound while the worker has no listener.
    LookupNoListener = "lookup_no_listener",
        "the pod's worker is not listening (yet); see the agent's log for its start";
    /// Inbound and the listener can't take it.
    LookupAssignFailed = "lookup_assign_failed",
        "the kernel could not hand the connection to the worker's listener";
    /// The wall: TCP from another socket than a worker's.
    WallNotWorker = "wall_not_worker",
        "TCP left the pod from something other than its worker (a raw or packet socket, or a connection older than the enrolment)";
    /// The wall: rewritten packets of a worker.
    WallTupleMismatch = "wall_tuple_mismatch",
        "a packet of the worker was rewritten inside the pod (NAT rules in the pod's namespace?)";
    /// The wall: unparsable frame.
    WallUnparsable = "wall_unparsable",
        "the pod sent a frame that can't be parsed";
    /// The wall: protocol that may not leave.
    WallProtocol = "wall_protocol",
        "the pod sent a protocol that may not leave it (tunnels, SCTP and other transports)";
    /// The wall: fragments of TCP.
    WallFragment = "wall_fragment",
        "the pod sent a fragment that hides its transport";
    /// The wall: a bare segment that carries too much.
    WallBareSegment = "wall_bare_segment",
        "a segment without a worker's socket carried more than a bare RST, ACK or SYN+ACK";
    /// Inbound plaintext.
    InboundPlaintext = "inbound_plaintext",
        "a caller outside the mesh sent plaintext; the pod takes mutual TLS only: enrol the caller";
    /// A captured connection whose original destination is unknown.
    OriginalDestinationUnknown = "original_destination_unknown",
        "the kernel has no original destination for this connection; something dialled the worker itself";
    /// The destination is in nobody's discovery.
    DestinationUnknown = "destination_unknown",
        "discovery knows no workload or service at this address; the mesh does not let traffic out to unknown places";
    /// The destination is known, but not enrolled.
    DestinationNotEnrolled = "destination_not_enrolled",
        "the destination is a pod outside the mesh; enrol it (label its namespace)";
    /// A DENY policy matches.
    PolicyDenied = "policy_denied",
        "a DENY policy matches this flow; the log line names it";
    /// No ALLOW policy matches.
    PolicyNoRule = "policy_no_rule",
        "no ALLOW policy matches this flow, and what no policy allows is refused: add a rule for this peer and port";
    /// The worker has not got its policy yet.
    PolicyMissing = "policy_missing",
        "the pod's worker has no policy yet; the agent has not reached control since it started";
    /// Policy asks for a peer's labels or services, and they could not be had.
    SourceUnresolved = "source_unresolved",
        "policy asks for labels or services of the caller, and the agent's supervisor did not tell them in time";
    /// The destination's worker refused the flow by its policy.
    PeerPolicy = "peer_policy",
        "the destination's worker refused the flow by its own, inbound policy; see its log";
    /// UDP that no policy names.
    UdpNotAllowed = "udp_not_allowed",
        "no policy allows this UDP; DNS to the cluster's resolvers is open, all else must be named by address block and port";
    /// A destination outside the mesh, which policy allows, could not be reached.
    DestinationConnect = "destination_connect",
        "policy allows this destination in plain, but it could not be reached; is it listening, and does the network let the pod reach it?";
    /// A service without endpoints, or without that port.
    NoEndpoint = "no_endpoint",
        "the service has no endpoint for this port";
    /// The supervisor did not answer in time.
    DiscoveryTimeout = "discovery_timeout",
        "the agent's supervisor did not answer a look-up in time";
    /// The worker holds no certificate.
    NoCertificate = "no_certificate",
        "the pod's worker holds no valid certificate; see the agent's log for its signing request";
    /// TCP to the peer's HBONE port failed.
    TunnelConnect = "tunnel_connect",
        "the destination's worker could not be reached on port 15008 (a NetworkPolicy, a firewall, or the pod is gone)";
    /// The TLS handshake failed for another reason than those below.
    TunnelTls = "tunnel_tls",
        "the TLS handshake between workers failed";
    /// A handshake did not end in time.
    HandshakeTimeout = "handshake_timeout",
        "a TLS handshake was not done in time and was dropped";
    /// Too many handshakes at a time.
    HandshakeLimit = "handshake_limit",
        "the worker had as many unfinished handshakes as it allows";
    /// The server's identity is not the one discovery gives.
    PeerIdentity = "peer_identity",
        "the server's certificate carries another identity than discovery gives for the destination (secure naming)";
    /// The peer's certificate is not in its validity.
    PeerExpired = "peer_expired",
        "the peer's certificate is expired or not yet valid; check the clocks and the agent's renewal";
    /// The peer's chain does not lead to a trusted root.
    PeerUntrusted = "peer_untrusted",
        "the peer's certificate does not chain to a trusted root";
    /// The peer's leaf is a CA.
    PeerIsCa = "peer_is_ca",
        "the peer presented a signing certificate (CA:TRUE) as its identity";
    /// The peer's certificate may not be used this way.
    PeerKeyUsage = "peer_key_usage",
        "the peer's certificate lacks the key usage for this side of the handshake";
    /// The peer is of another trust domain.
    PeerTrustDomain = "peer_trust_domain",
        "the peer's certificate is of another trust domain";
    /// The peer's certificate holds no usable SPIFFE ID.
    PeerNoIdentity = "peer_no_identity",
        "the peer's certificate holds no SPIFFE ID of a workload, or more than one";
    /// The peer presented no certificate.
    PeerNoCertificate = "peer_no_certificate",
        "the caller presented no certificate";
    /// The peer refused the tunnel's stream.
    TunnelRefused = "tunnel_refused",
        "the destination's worker refused the stream";
    /// The peer broke HTTP/2 or HBONE.
    TunnelProtocol = "tunnel_protocol",
        "the peer broke the HBONE protocol";
    /// A CONNECT for an address that is not the pod's.
    AuthorityNotThisPod = "authority_not_this_pod",
        "the caller asked for an address that is not this pod's";
    /// A CONNECT for one of the worker's ports.
    AuthorityReservedPort = "authority_reserved_port",
        "the caller asked for one of the mesh's own ports";
    /// The app refused or did not answer.
    AppConnect = "app_connect",
        "the pod's app did not accept the connection (is it listening on that port?)";
    /// The worker's limit of connections.
    ConnectionLimit = "connection_limit",
        "the worker has as many connections as its limit allows";
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.code())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn codes_are_unique_and_of_one_form() {
        let codes: HashSet<_> = Reason::ALL.iter().map(|r| r.code()).collect();
        assert_eq!(codes.len(), Reason::ALL.len());
        assert!(
            codes
                .iter()
                .all(|c| c.bytes().all(|b| b.is_ascii_lowercase() || b == b'_'))
        );
    }
}
