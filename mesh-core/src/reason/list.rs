//! The list itself. A new reason is one entry here; then `docs/REASONS.md` is generated anew,
//! as the failing test says.

use super::Group;

/// `Name = "code" ["what the app sees, where it differs from the group"], "sentence", "remedy";`
macro_rules! reasons {
    ($($title:literal, $shows:literal {
        $($name:ident = $code:literal $([$own:literal])?, $sentence:literal, $remedy:literal;)+
    })+) => {
        /// A reason for a refusal or a failure.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum Reason {
            $($(#[doc = $sentence] $name,)+)+
        }

        impl Reason {
            /// Every reason.
            pub const ALL: &[Self] = &[$($(Self::$name,)+)+];

            /// Every reason, in groups.
            pub const GROUPS: &[Group] = &[$(Group {
                title: $title,
                shows: $shows,
                reasons: &[$(Self::$name,)+],
            },)+];

            /// The stable code, used as a metric's label and in logs.
            #[must_use]
            pub const fn code(self) -> &'static str {
                match self { $($(Self::$name => $code,)+)+ }
            }

            /// What happened, for the operator.
            #[must_use]
            pub const fn sentence(self) -> &'static str {
                match self { $($(Self::$name => $sentence,)+)+ }
            }

            /// What would change it, or where to look, for the operator.
            #[must_use]
            pub const fn remedy(self) -> &'static str {
                match self { $($(Self::$name => $remedy,)+)+ }
            }

            /// What the app sees of it, with the errno.
            #[must_use]
            pub const fn shows(self) -> &'static str {
                match self { $($(Self::$name => first(&[$($own,)? $shows]),)+)+ }
            }
        }
    };
}

const fn first(texts: &[&'static str]) -> &'static str {
    texts[0]
}

reasons! {
    "In the kernel, before any worker: system calls", "the call fails" {
        ConnectReservedPort = "connect_reserved_port" ["`connect`: `ECONNREFUSED`"],
            "the app dialled one of the mesh's own ports (15001, 15006, 15008, 15053)",
            "apps can't dial those; let the destination listen on another port";
        ConnectNoRoute = "connect_no_route" ["`connect`: `ENETUNREACH`"],
            "the pod has no address of the destination's family",
            "give the pod such an address, or dial the other family; without the mesh this fails as well";
        ConnectBoundDevice = "connect_bound_device" ["`connect`: `ENETUNREACH`"],
            "the socket is bound to a device (SO_BINDTODEVICE), which capture can't honour",
            "let the app not set the option";
        ConnectQuota = "connect_quota" ["`connect`: `EAGAIN`"],
            "the pod has as many unfinished connections as its quota allows",
            "look in the agent's log whether the pod's worker is stalled; let the app connect more slowly";
        ConnectNoStorage = "connect_no_storage" ["`connect`: `ENOMEM`"],
            "the kernel had no memory for the socket's original destination",
            "look for what uses up the node's memory";
        BindReservedPort = "bind_reserved_port" ["`bind`: `EADDRINUSE`"],
            "the app wanted to listen on one of the mesh's own ports (15001, 15006, 15008, 15053)",
            "let it listen on another port";
        ForeignProcess = "foreign_process" ["`connect`, `sendto`: `EPERM` where it is refused"],
            "a process from outside the pod, such as a port-forward, used the pod's network and so passes for the pod",
            "the line in the log names the process; with the label nodemesh.dev/foreign-processes (audit, refuse, refuse-exec) the pod or its namespace says whether it may";
        EnteredProcess = "entered_process" ["`connect`, `sendto`: `EPERM` where it is refused"],
            "a process that was put into one of the pod's containers, as by kubectl exec or an exec probe, used the pod's network and so passes for the pod",
            "the line in the log names the process; with the label nodemesh.dev/foreign-processes (audit, refuse, refuse-exec) the pod or its namespace says whether it may";
    }

    "In the kernel, before any worker: packets", "a time-out, or a reset" {
        PublishFailed = "publish_failed" ["a reset (`ECONNRESET`)"],
            "the connection's tuple could not be published to the worker, which closed it",
            "look for other programs of the kernel that change connections in the pod";
        LookupNoListener = "lookup_no_listener" ["`connect` of the caller: `ECONNREFUSED`"],
            "the pod's worker was not listening",
            "wait until it has started; see the agent's log if it doesn't";
        LookupAssignFailed = "lookup_assign_failed" ["`connect` of the caller: `ECONNREFUSED`"],
            "the kernel could not hand the connection to the worker's listener",
            "see the agent's log for the worker's start";
        WallNotWorker = "wall_not_worker",
            "TCP left the pod from something other than its worker: a raw or packet socket, or a connection older than the enrolment that was not to go on",
            "let the app use ordinary sockets, and open old connections again";
        WallTupleMismatch = "wall_tuple_mismatch",
            "a packet of the worker was rewritten inside the pod",
            "remove NAT rules from the pod's network namespace";
        WallSource = "wall_source",
            "the pod sent a packet under an address that is not its own, or claimed one by ARP or neighbour discovery",
            "remove the address from the pod, or have control know it as the pod's";
        CutOff = "cut_off" ["`connect`: `EPERM`; of a caller: a time-out"],
            "the pod is to be in the mesh but can't be served safely, so it is cut off",
            "see `mesh-agent pod list` or `meshctl status` for what is in the way, and remove it: the pod comes back by itself; or run the agent with --unserved leave";
        GrandfatherEnded = "grandfather_ended" ["`ECONNABORTED`, at the other end a reset; a time-out where no agent runs"],
            "a connection that was open in clear when its pod was enrolled, and whose time is over",
            "let the app connect again, which goes through the mesh; --grandfather-for of the agent says how long such connections may go on";
        WallProbe = "wall_probe",
            "a connection came to the pod with the addresses and ports of a probe of kubelet's that kubelet's own socket did not open",
            "look for what on the node or in another pod forges packets; if every probe is refused so, the network plugin takes kubelet's packets off their sockets (docs/POLICY.md, \"Kubelet's probes\")";
        ProbeNoRoom = "probe_no_room" ["what the pod's policy says to a plain call from the node"],
            "more of kubelet's connections were on their way than the kernel has room for, so a probe went to the pod's worker",
            "look for what kubelet's connections wait for: apps that accept nothing, or a node that is overloaded";
        WallUnparsable = "wall_unparsable",
            "the pod sent a frame that can't be parsed",
            "let the app not build frames of its own";
        WallProtocol = "wall_protocol",
            "the pod sent or was sent a protocol that may not cross its wall: a tunnel, SCTP or another transport",
            "use TCP or UDP, or leave the pod out of the mesh";
        WallFragment = "wall_fragment",
            "a fragment that hides its transport came to the pod's wall",
            "send datagrams that fit the path";
        WallBareSegment = "wall_bare_segment",
            "a segment without a worker's socket carried more than a bare RST, ACK or SYN+ACK",
            "let the app use ordinary sockets";
        UdpNotAllowed = "udp_not_allowed" ["the datagram is lost"],
            "no policy allows this UDP",
            "allow it by address block or, outbound, by service, with port and protocol UDP; DNS to the cluster's resolvers is open";
    }

    "By policy", "a reset (`ECONNRESET`)" {
        PolicyDenied = "policy_denied" ["`connect`: `EPERM` where no endpoint could be allowed, else a reset (`ECONNRESET`)"],
            "a DENY policy matches this flow",
            "change the policy that is named with it";
        PolicyNoRule = "policy_no_rule",
            "no ALLOW policy matches this flow, and what no policy allows is refused",
            "add a rule for this peer and port; `meshctl why` writes it";
        PolicyMissing = "policy_missing",
            "the pod's worker has no policy yet",
            "see the agent's log whether it reaches control";
        SourceUnresolved = "source_unresolved",
            "policy asks for labels or services of the caller, and the agent's supervisor did not tell them in time",
            "see the agent's log; name the caller by identity or namespace where that will do";
        PeerPolicy = "peer_policy",
            "the destination's worker refused the flow by its own, inbound policy",
            "see the log of the destination's agent, which names the policy or what is missing";
        InboundPlaintext = "inbound_plaintext",
            "a caller outside the mesh sent plaintext, and the port takes mutual TLS only",
            "enrol the caller, or make the port permissive and allow the caller's address block";
        DestinationUnknown = "destination_unknown",
            "discovery knows no workload or service at this address, and no policy lets plain traffic out to it",
            "allow the address block outbound, if the traffic may be plain";
        DestinationNotEnrolled = "destination_not_enrolled",
            "the destination is a pod outside the mesh, and no policy lets plain traffic out to it",
            "enrol it (label its namespace), or allow its service or address block outbound, if the traffic may be plain";
    }

    "On the way to the destination", "a reset (`ECONNRESET`)" {
        OriginalDestinationUnknown = "original_destination_unknown",
            "the kernel has no original destination for this connection",
            "let nothing in the pod dial the worker itself";
        NoEndpoint = "no_endpoint",
            "the service has no endpoint for this port",
            "check the service's selector and ports, and whether its pods are ready";
        DiscoveryTimeout = "discovery_timeout",
            "the agent's supervisor did not answer a look-up in time",
            "see the agent's log, and whether the node is overloaded";
        DestinationConnect = "destination_connect",
            "policy allows this destination in plain, but it could not be reached",
            "check that it listens, and that the network lets the pod reach it";
        TunnelConnect = "tunnel_connect",
            "the destination's worker could not be reached on port 15008, or on its app's port where tunnels go there",
            "check whether the pod is gone, and whether a NetworkPolicy or a firewall blocks the port";
        TunnelRefused = "tunnel_refused",
            "the destination's worker refused the stream",
            "see the log of the destination's agent";
        TunnelProtocol = "tunnel_protocol",
            "the peer broke the HBONE protocol, or its connection failed under the flow",
            "check the peer's version and its agent's log";
    }

    "Between workers: mutual TLS", "a reset (`ECONNRESET`)" {
        NoCertificate = "no_certificate",
            "the pod's worker holds no valid certificate",
            "see the agent's log for its signing request";
        TunnelTls = "tunnel_tls",
            "the TLS handshake between workers failed",
            "see the detail, and the log of the other side's agent";
        HandshakeTimeout = "handshake_timeout",
            "a TLS handshake was not done in time and was dropped",
            "check the path between the nodes and the load on them";
        HandshakeLimit = "handshake_limit",
            "the worker had as many unfinished handshakes as its budget allows",
            "look for who opens so many connections, or raise handshakes in a WorkerBudget";
        HandshakeRate = "handshake_rate",
            "callers began more handshakes a second than the worker's budget allows",
            "look for who opens so many tunnels, or raise handshakesPerSecond in a WorkerBudget";
        TunnelLimit = "tunnel_limit",
            "the worker has as many tunnels in this direction as its budget allows",
            "look for who has so many, or raise tunnels in a WorkerBudget";
        PeerIdentity = "peer_identity",
            "the server's certificate carries another identity than discovery gives for the destination",
            "check whether discovery is behind, or something answers in the destination's place";
        PeerExpired = "peer_expired",
            "the peer's certificate is expired or not yet valid",
            "check the clocks of both nodes and the renewal in the peer's agent's log";
        PeerUntrusted = "peer_untrusted",
            "the peer's certificate does not chain to a trusted root",
            "check that both nodes have the same roots";
        PeerIsCa = "peer_is_ca",
            "the peer presented a signing certificate (CA:TRUE) as its identity",
            "find out who issued it: control signs none for workloads";
        PeerKeyUsage = "peer_key_usage",
            "the peer's certificate lacks the key usage for this side of the handshake",
            "find out who issued it: control's certificates have both";
        PeerTrustDomain = "peer_trust_domain",
            "the peer's certificate is of another trust domain",
            "enrol both pods in one mesh";
        PeerNoIdentity = "peer_no_identity",
            "the peer's certificate holds no SPIFFE ID of a workload, or more than one",
            "find out who issued it: control's certificates have one";
        PeerNoCertificate = "peer_no_certificate",
            "the caller presented no certificate",
            "enrol the caller; port 15008 takes mutual TLS only";
        PeerRevoked = "peer_revoked",
            "the peer's identity, its node, or a certificate of its chain is revoked",
            "see the detail; if it is not to be so, take it out of the Revocation, or of the CRL, that names it";
        OwnRevoked = "own_revoked",
            "the pod's own identity, its node, or its certificate is revoked",
            "see the detail; if it is not to be so, take it out of the Revocation, or of the CRL, that names it";
        PeerProof = "peer_proof",
            "in a tunnel that stands the peer proved a new certificate wrongly, or not for this tunnel",
            "check the peer's version; if it is this one, find out who answers in its place";
        TunnelRotated = "tunnel_rotated",
            "the certificate of a tunnel was replaced, its peer can't be shown the new one, and its time to drain is over",
            "let both ends run Nodemesh, which needs no new connection, or give the agent a longer --tunnel-drain";
        DrainOver = "drain_over",
            "the connection was still open when its worker, which another has replaced or whose pod has left the mesh, had no more time to finish",
            "let the app connect anew, which it can at once, or give the agent a longer --drain-for";
    }

    "At the destination's worker", "a reset (`ECONNRESET`)" {
        AuthorityNotThisPod = "authority_not_this_pod",
            "the caller asked for an address that is not this pod's",
            "check whether the caller's discovery is behind";
        AuthorityOtherPort = "authority_other_port",
            "the caller asked for another port than the one that its tunnel came to",
            "check the caller's version: a tunnel to the port of an app carries streams to that port only";
        AuthorityReservedPort = "authority_reserved_port",
            "the caller asked for one of the mesh's own ports",
            "let the app listen on another port";
        AppConnect = "app_connect",
            "the pod's app did not accept the connection",
            "check that it listens on that port";
        StreamLimit = "stream_limit",
            "callers' tunnels have as many streams open as the worker's budget allows",
            "look for who keeps so many open, or raise streams in a WorkerBudget";
    }

    "By the worker's budget", "a reset (`ECONNRESET`)" {
        ConnectionLimit = "connection_limit",
            "the worker has as many connections as its budget allows",
            "look for who keeps so many open, or raise connections in a WorkerBudget";
        ConnectionRate = "connection_rate",
            "more new connections a second came than the worker's budget allows",
            "look for who opens so many, or raise connectionsPerSecond in a WorkerBudget";
        NotReading = "not_reading",
            "too much waited in the worker for an app that does not read",
            "let the app read, or raise bufferedMib or memoryMaxMib in a WorkerBudget";
        MemoryPressure = "memory_pressure",
            "the worker is near its memory limit and takes nothing new, so that the kernel need not end it",
            "look for who keeps so many connections open or does not read, or raise memoryMaxMib in a WorkerBudget";
    }
}
