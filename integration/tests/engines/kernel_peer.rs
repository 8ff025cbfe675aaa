//! A kernel VXLAN peer under every offload setting. Both kernels leave checksums and cutting to the next device as far as
//! the setting lets them; whatever reaches us unfinished has to reach the pods right.

use integration::bed::Underlay;
use integration::flannel::{Checksums, Pair, dual_stack};
use integration::offloads::Offloads;

fn carries(checksums: Checksums) {
    let zero = checksums == Checksums::Off;
    let pair = Pair::with(Underlay::Dual, dual_stack(), checksums, |config| {
        config
            .set("datapath.engine", "batched")
            .set("datapath.udp6-zero-checksum", zero)
    });
    for offloads in Offloads::ALL {
        eprintln!("{offloads:?}");
        offloads.apply(&pair.bed);
        pair.carry(5_000_000, 97);
    }
    pair.daemon.assert_balanced(&[]);
    pair.daemon.stop();
}

#[test]
fn kernel_vxlan_under_every_setting() {
    carries(Checksums::On);
}

#[test]
fn kernel_vxlan_without_outer_checksums_under_every_setting() {
    carries(Checksums::Off);
}
