//! One suite for every way in which servers stand together: alone, read by a replica, a cluster of three, watched by
//! sentinels. What only one of them can show stands in [`cluster`], [`sentinel`] and [`replica`].

mod cases;
mod cluster;
mod place;
mod replica;
mod sentinel;

use place::Kind;

macro_rules! suite {
    ($($case:ident),* $(,)?) => {
        mod single { suite!(@kind Single, $($case),*); }
        mod read_by_a_replica { suite!(@kind Replica, $($case),*); }
        mod cluster_of_three { suite!(@kind Cluster, $($case),*); }
        mod watched_by_a_sentinel { suite!(@kind Sentinel, $($case),*); }
    };
    (@kind $kind:ident, $($case:ident),*) => {
        use super::{Kind, cases};
        $(
            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $case() {
                cases::$case(Kind::$kind).await;
            }
        )*
    };
}

suite!(
    p4_everything_comes_back_is_proven_and_reads_as_the_source,
    p4_a_backup_while_a_writer_runs_is_proven,
    p4_one_change_is_found,
    an_empty_one_is_backed_up_proven_and_restored,
    a_second_backup_stores_little,
    one_part_comes_back_alone_and_what_is_excluded_stays_out,
    what_is_in_the_way_is_refused_and_replaced_only_when_that_was_said,
    p3_a_restore_that_was_cut_off_goes_on,
    a_wrong_password_and_missing_rights_are_named,
    where_no_replica_is_allowed_keys_are_read_one_by_one,
    a_cancelled_backup_and_restore_stop_soon,
    it_has_one_identity,
);
