//! TLS, certificates that change, and users.

use std::fs;
use std::path::Path;
use std::process::Command;

use integration::bed::{Bed, Config, Spec};
use integration::etcd::{Etcd, Tls};

use super::*;

/// A certificate authority, with openssl.
struct Authority {
    dir: tempfile::TempDir,
}

impl Authority {
    fn new() -> Self {
        let authority = Authority {
            dir: tempfile::tempdir().unwrap(),
        };
        authority.openssl("req -x509 -newkey rsa:2048 -nodes -keyout ca.key -out ca.pem -days 2 -subj /CN=test-ca -addext basicConstraints=critical,CA:TRUE");
        authority
    }

    fn openssl(&self, line: &str) {
        let done = Command::new("openssl")
            .args(line.split(' '))
            .current_dir(self.dir.path())
            .output()
            .unwrap();
        assert!(
            done.status.success(),
            "openssl {line}: {}",
            String::from_utf8_lossy(&done.stderr)
        );
    }

    /// A certificate and its key, by this name.
    fn issue(&self, name: &str) -> (String, String) {
        fs::write(
            self.path("ext"),
            "subjectAltName=IP:10.99.0.254\nextendedKeyUsage=serverAuth,clientAuth\n",
        )
        .unwrap();
        self.openssl(&format!(
            "req -newkey rsa:2048 -nodes -keyout {name}.key -out {name}.csr -subj /CN={name}"
        ));
        self.openssl(&format!("x509 -req -in {name}.csr -CA ca.pem -CAkey ca.key -CAcreateserial -days 2 -extfile ext -out {name}.pem"));
        (
            self.path(&format!("{name}.pem")),
            self.path(&format!("{name}.key")),
        )
    }

    fn path(&self, name: &str) -> String {
        self.dir.path().join(name).to_string_lossy().into_owned()
    }

    fn tls(&self, clients: bool) -> Tls {
        Tls {
            ca: self.path("ca.pem"),
            cert: self.issue("server"),
            clients,
        }
    }
}

fn bed() -> Bed {
    Bed::with(&Spec {
        nodes: 1,
        pods: false,
        ..Spec::default()
    })
}

fn serves(bed: &Bed, config: &Config) -> Daemon {
    let daemon = Daemon::launch(bed.node(1), config);
    await_daemon(&daemon);
    daemon
}

#[test]
fn a_ca_alone_is_enough_for_tls() {
    let (bed, authority) = (bed(), Authority::new());
    let etcd = Etcd::start_with(&bed, Some(authority.tls(false)));
    etcd.configure(VXLAN);
    serves(&bed, &etcd.config(bed.node(1))).stop();
    // Another authority's server is not trusted.
    let stranger = Authority::new();
    fs::remove_file(bed.node(1).dir().join("leases.saved")).unwrap();
    let config = etcd
        .config(bed.node(1))
        .set("store.ca-file", stranger.path("ca.pem"));
    let daemon = Daemon::launch(bed.node(1), &config);
    until("refused", || {
        daemon.log().contains("out of reach").then_some(())
    });
    assert!(daemon.log().contains("certificate"), "{}", daemon.log());
}

/// The client's certificate is shown, and when it is renewed on disk the next connection shows the new one.
#[test]
fn client_certificates_renewed_on_disk() {
    let (bed, authority) = (bed(), Authority::new());
    let mut etcd = Etcd::start_with(&bed, Some(authority.tls(true)));
    etcd.configure(VXLAN);
    let (cert, key) = authority.issue("client");
    let config = etcd
        .config(bed.node(1))
        .set("store.cert-file", cert.clone())
        .set("store.key-file", key.clone());
    let daemon = serves(&bed, &config);
    // A certificate of nobody's: the connection stands, the next one fails, and says so.
    let stranger = Authority::new();
    let (theirs, their_key) = stranger.issue("client");
    let take = |from: &str, to: &str| {
        let beside = Path::new(to).with_extension("new");
        fs::copy(from, &beside).unwrap();
        fs::rename(&beside, to).unwrap();
    };
    let (good, good_key) = authority.issue("renewed");
    take(&theirs, &cert);
    take(&their_key, &key);
    assert_eq!(daemon.status()["state"], "ok");
    etcd.kill();
    etcd.run();
    daemon.wait_for("not trusted", |status| status["state"] == "degraded");
    sleep(Duration::from_secs(1));
    take(&good, &cert);
    take(&good_key, &key);
    until("trusted again", || {
        (daemon.status()["state"] == "ok").then_some(())
    });
}

#[test]
fn a_user_and_a_password() {
    let bed = bed();
    let mut etcd = Etcd::start(&bed);
    etcd.configure(VXLAN);
    for line in [
        "user add root:secret",
        "role add root",
        "user grant-role root root",
        "role add overlay",
        "role grant-permission overlay --prefix=true readwrite /coreos.com/network/",
        "user add node:pass",
        "user grant-role node overlay",
        "auth enable",
    ] {
        etcd.ctl(&line.split(' ').collect::<Vec<_>>());
    }
    etcd.log_in("root:secret");
    let password = bed.node(1).dir().join("password");
    fs::write(&password, "wrong\n").unwrap();
    let config = etcd.config(bed.node(1)).set("store.username", "node").set(
        "store.password-file",
        password.to_string_lossy().into_owned(),
    );
    let daemon = Daemon::launch(bed.node(1), &config);
    until("refused", || {
        daemon.log().contains("authentication failed").then_some(())
    });
    // Read anew for each connection.
    fs::write(&password, "pass\n").unwrap();
    await_daemon(&daemon);
    assert_eq!(etcd.subnets().len(), 1);
    // One that may only read says why it has no lease.
    etcd.ctl(&[
        "role",
        "revoke-permission",
        "--prefix=true",
        "overlay",
        "/coreos.com/network/",
    ]);
    etcd.ctl(&[
        "role",
        "grant-permission",
        "overlay",
        "--prefix=true",
        "read",
        "/coreos.com/network/",
    ]);
    etcd.delete(&etcd.subnets()[0].0);
    daemon.wait_for("refused, and said", |status| {
        status["reasons"].to_string().contains("permission denied")
    });
    let line = "the store refuses this node's lease";
    assert_eq!(daemon.log().matches(line).count(), 1, "{}", daemon.log());
}
