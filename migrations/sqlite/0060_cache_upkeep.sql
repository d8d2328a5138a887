-- Finding the entries that may go: those whose time is over, and those used longest ago.
create index cache_entries_expiry on cache_entries (expires_at) where state = 'ready';
create index cache_entries_tenant on cache_entries (tenant) where state = 'ready';
-- Finding the jobs that were answered with another one's, when that one's message comes again.
create index jobs_answered_along on jobs (cache_key)
    where source in ('shared', 'semantic') and reply_to is not null;

-- Copies for learning are nobody's traffic.
drop view token_savings;
create view token_savings as
select strftime('%Y-%m-%dT%H:00:00Z', finished_at) as hour, tenant,
       coalesce(sum(prompt_tokens) filter (where source = 'computed'), 0)
           + coalesce(sum(escalated_prompt_tokens), 0) as prompt_tokens_sent,
       coalesce(sum(prompt_tokens_computed) filter (where source = 'computed'), 0)
           + coalesce(sum(escalated_prompt_tokens_computed), 0) as prompt_tokens_computed,
       coalesce(sum(prompt_tokens) filter (where source in ('cache', 'shared')), 0) as reused_tokens,
       coalesce(sum(prompt_tokens) filter (where source = 'semantic'), 0) as semantic_tokens,
       coalesce(sum(prompt_tokens - prompt_tokens_computed) filter (where source = 'computed'), 0)
           + coalesce(sum(escalated_prompt_tokens - escalated_prompt_tokens_computed), 0) as prefix_tokens,
       coalesce(sum(cleaned_tokens), 0) as cleaned_tokens,
       coalesce(sum(pruned_tokens), 0) as pruned_tokens
  from jobs
 where state = 'succeeded' and shadow_of is null
 group by 1, 2;
