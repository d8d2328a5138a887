-- Finding the entries that may go: those whose time is over, and those used longest ago.
create index cache_entries_expiry on cache_entries (expires_at) where state = 'ready';
create index cache_entries_tenant on cache_entries (tenant) where state = 'ready';
-- Finding the jobs that were answered with another one's, when that one's message comes again.
create index jobs_answered_along on jobs (cache_key)
    where source in ('shared', 'semantic') and reply_to is not null;

-- Copies for learning are nobody's traffic.
drop view token_savings;
create view token_savings as
select date_trunc('hour', finished_at) as hour, tenant,
       (coalesce(sum(prompt_tokens) filter (where source = 'computed'), 0)
           + coalesce(sum(escalated_prompt_tokens), 0))::bigint as prompt_tokens_sent,
       (coalesce(sum(prompt_tokens_computed) filter (where source = 'computed'), 0)
           + coalesce(sum(escalated_prompt_tokens_computed), 0))::bigint as prompt_tokens_computed,
       coalesce(sum(prompt_tokens) filter (where source in ('cache', 'shared')), 0)::bigint as reused_tokens,
       coalesce(sum(prompt_tokens) filter (where source = 'semantic'), 0)::bigint as semantic_tokens,
       (coalesce(sum(prompt_tokens - prompt_tokens_computed) filter (where source = 'computed'), 0)
           + coalesce(sum(escalated_prompt_tokens - escalated_prompt_tokens_computed), 0))::bigint as prefix_tokens,
       coalesce(sum(cleaned_tokens), 0)::bigint as cleaned_tokens,
       coalesce(sum(pruned_tokens), 0)::bigint as pruned_tokens
  from jobs
 where state = 'succeeded' and shadow_of is null
 group by 1, 2;
comment on view token_savings is 'Prompt tokens sent and computed, and those saved, each by what saved them, by hour and tenant; copies for learning left out.';
comment on column token_savings.hour is 'The hour in which the jobs finished.';
comment on column token_savings.tenant is 'Whose jobs they were.';
comment on column token_savings.prompt_tokens_sent is 'Prompt tokens sent to models, those of escalated attempts included.';
comment on column token_savings.prompt_tokens_computed is 'Prompt tokens that models computed.';
comment on column token_savings.reused_tokens is 'Not sent: prompts answered from the cache or by an identical prompt in flight.';
comment on column token_savings.semantic_tokens is 'Not sent: prompts given the answer to a question that asks the same in other words.';
comment on column token_savings.prefix_tokens is 'Sent, not computed: found in a model''s prefix cache.';
comment on column token_savings.cleaned_tokens is 'Not sent: clean-up that loses nothing (estimated).';
comment on column token_savings.pruned_tokens is 'Not sent: context that the question does not need (estimated).';

do $$
begin
    if exists (select from pg_roles where rolname = 'promptyard_analyst') then
        grant select on token_savings to promptyard_analyst;
    end if;
end $$;
