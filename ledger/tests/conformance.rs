//! The one suite that every ledger passes: the functions of `suite` run on SQLite files and on a real
//! PostgreSQL server. A new kind of ledger is proven by one more module here.

#![allow(clippy::unwrap_used, reason = "in a test, a panic is the report")]

mod suite;

use suite::Place;

macro_rules! conformance {
    ($($name:ident),+ $(,)?) => {
        mod sqlite {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $name() {
                super::suite::$name(&super::Place::sqlite()).await;
            })+
        }

        mod postgres {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $name() {
                super::suite::$name(&super::Place::postgres(stringify!($name))).await;
            })+
        }
    };
}

conformance!(
    p1_a_job_is_there_once_it_was_accepted,
    p1_a_job_whose_worker_vanished_is_taken_up_again,
    p1_a_lease_that_outlasts_the_word_of_its_worker_is_swept_when_it_ends,
    p1_nothing_is_rescued_while_its_lease_is_renewed,
    p2_what_a_superseded_attempt_writes_is_refused,
    p2_a_token_rises_with_every_attempt,
    p3_the_next_attempt_finds_the_checkpoint,
    p6_a_job_cannot_name_the_database_of_another_tenant,
    p12_a_waiting_job_says_why,
    rule_1_a_cancellation_outlives_a_crash,
    rule_1_a_queued_job_is_cancelled_at_once,
    rule_1_a_job_is_repeated_as_a_new_job_that_names_the_old_one,
    p12_a_job_that_is_kept_back_says_by_what,
    p12_a_job_says_who_comes_before_it,
    rule_3_a_limit_is_never_exceeded_and_leaves_no_slot_idle,
    rule_3_a_job_that_is_delivered_twice_takes_one_slot,
    rule_3_deliveries_to_many_workers_keep_all_limits,
    rule_3_a_limit_on_a_flood_costs_few_claims_and_leaves_others_alone,
    rule_3_a_limit_counts_what_runs_when_it_comes_and_lets_go_when_it_goes,
    rule_3_a_count_that_is_wrong_is_mended,
    rule_4_who_is_refused_elsewhere_passes_its_slot_on,
    a_paused_tenant_starts_nothing_and_goes_on_in_order,
    a_pause_stops_what_it_names,
    a_job_runs_in_its_window_only,
    a_job_that_waits_is_given_another_priority,
    many_jobs_are_cancelled_while_they_run,
    what_is_asked_of_very_many_is_done_in_several_requests,
    dead_jobs_are_replayed_once_by_filter,
    rule_17_a_job_runs_only_where_its_database_is_reached,
    a_newer_version_of_a_kind_waits_for_a_worker_that_knows_it,
    rule_2_a_drain_and_a_snooze_spend_no_try,
    rule_2_transient_failures_are_retried_until_the_tries_are_spent,
    rule_2_a_permanent_failure_is_final,
    rule_3_a_completion_that_is_repeated_gets_the_same_answer,
    rule_4_parked_jobs_keep_their_order_and_exactly_the_first_is_woken,
    rule_4_a_cancelled_job_passes_its_turn_on,
    rule_7_a_job_whose_worker_died_runs_alone_and_dies_after_two_deaths,
    rule_8_a_bad_request_in_a_batch_fails_alone,
    rule_9_no_job_is_claimed_twice_by_many_workers,
    rule_10_a_reader_of_events_that_resumes_misses_none,
    rule_12_an_idempotency_key_gives_the_same_job_and_refuses_another_request,
    rule_12_a_job_that_ends_is_seen_exactly_once,
    rule_15_claimable_jobs_are_read_in_pages_in_the_order_of_claims,
    rule_15_a_commit_names_the_jobs_that_it_made_claimable,
    rule_16_a_waiting_job_rises_with_its_age,
    rule_16_a_tenant_has_a_ceiling_of_priority_and_a_weight,
    rule_16_a_batch_of_claims_is_shared_between_tenants,
    rule_16_many_workers_at_one_flood_leave_no_tenant_behind,
    rule_17_two_records_of_one_database_exclude_each_other,
    rule_17_an_identity_that_is_found_while_both_run_makes_one_step_back,
    rule_17_a_long_job_takes_no_short_slot,
    rule_18_a_due_time_is_decided_once_by_two_schedulers,
    rule_18_a_former_leader_decides_nothing,
    the_lead_passes_on_when_its_lease_runs_out,
    a_unique_key_is_free_again_when_its_job_has_ended,
    a_job_whose_deadline_passed_expires,
    a_delayed_job_becomes_claimable_when_it_is_due,
    a_submit_wakes_whoever_waits,
    what_an_attempt_made_is_listed_once_the_attempt_has_ended,
    what_is_left_to_the_next_attempt_is_its_own_once_recorded_and_goes_with_the_job,
    the_catalogue_keeps_what_was_found_since,
    the_log_of_a_job_keeps_its_newest_lines,
    the_history_is_pruned_by_age_and_by_bytes,
    tenants_databases_and_policies_are_kept,
    two_handles_on_one_ledger_share_the_work,
    a_newer_schema_is_refused,
    a_newer_schema_that_this_version_can_go_on_with_is_taken,
    jobs_are_found_by_a_part_of_their_id_and_listed_in_pages,
    a_token_is_known_by_its_hash_until_it_is_removed_or_expires,
    p6_a_token_and_its_name_belong_to_one_tenant,
    what_changed_meanwhile_is_not_overwritten,
    rule_10_the_events_of_one_job_and_of_one_tenant_are_read_apart,
    databases_policies_tenants_and_backups_are_listed_in_pages,
    the_catalogue_counts_what_a_repository_holds,
    a_finding_is_opened_changed_resolved_and_reopened,
    what_could_not_be_looked_at_resolves_nothing,
    what_is_set_aside_is_until_its_time_is_over,
    p2_a_superseded_look_records_nothing,
    what_an_audit_compares_with_is_kept_replaced_and_gone_with_its_database,
    an_action_is_kept_with_its_way_back_and_a_superseded_attempt_writes_none,
);
