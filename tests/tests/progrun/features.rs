//! What the kernel can do, as it is asked and as its history has it.

use mesh_tests::kernel;
use mesh_userspace::bpf::probe::{Feature, KernelFeatures};

use super::spec::GRE;
use super::world::world;

#[test]
fn kernel_has_what_its_version_promises() {
    world(GRE, |_| {
        let since = |major, minor| {
            if kernel::is_since(major, minor) { Feature::Present } else { Feature::Absent }
        };
        let features = KernelFeatures::probe();
        assert_eq!(features.load, Feature::Present);
        assert_eq!(features.redirect_peer, since(5, 10));
        assert_eq!(features.redirect_neigh, since(5, 10));
        assert_eq!(features.adjust_room, since(5, 2));
        assert_eq!(features.encap_ethernet, since(5, 13));
        assert_eq!(features.decap_l3, since(6, 3));
        let tail_calls = if cfg!(target_arch = "x86_64") { since(5, 10) } else { since(6, 0) };
        assert_eq!(features.tail_calls, tail_calls);
        assert_eq!(features.tcx, since(6, 6));
    });
}
