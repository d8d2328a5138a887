-- What the context's clean-up and pruning left out of prompts.
alter table jobs add column cleaned_tokens integer, add column pruned_tokens integer;
comment on column jobs.cleaned_tokens is 'Estimated prompt tokens that clean-up (context: lossless, prune) kept from being sent in the last attempt.';
comment on column jobs.pruned_tokens is 'Estimated prompt tokens that pruning (context: prune) kept from being sent in the last attempt.';

create view token_savings as
select date_trunc('hour', finished_at) as hour, tenant,
       (coalesce(sum(prompt_tokens) filter (where source = 'computed'), 0)
           + coalesce(sum(escalated_prompt_tokens), 0))::bigint as prompt_tokens_sent,
       (coalesce(sum(prompt_tokens_computed) filter (where source = 'computed'), 0)
           + coalesce(sum(escalated_prompt_tokens_computed), 0))::bigint as prompt_tokens_computed,
       coalesce(sum(prompt_tokens) filter (where source <> 'computed'), 0)::bigint as reused_tokens,
       (coalesce(sum(prompt_tokens - prompt_tokens_computed) filter (where source = 'computed'), 0)
           + coalesce(sum(escalated_prompt_tokens - escalated_prompt_tokens_computed), 0))::bigint as prefix_tokens,
       coalesce(sum(cleaned_tokens), 0)::bigint as cleaned_tokens,
       coalesce(sum(pruned_tokens), 0)::bigint as pruned_tokens
  from jobs
 where state = 'succeeded'
 group by 1, 2;
comment on view token_savings is 'Prompt tokens sent and computed, and those saved, each by what saved them, by hour and tenant.';
comment on column token_savings.hour is 'The hour in which the jobs finished.';
comment on column token_savings.tenant is 'Whose jobs they were.';
comment on column token_savings.prompt_tokens_sent is 'Prompt tokens sent to models, those of escalated attempts included.';
comment on column token_savings.prompt_tokens_computed is 'Prompt tokens that models computed.';
comment on column token_savings.reused_tokens is 'Not sent: prompts answered from the cache or by an identical prompt in flight.';
comment on column token_savings.prefix_tokens is 'Sent, not computed: found in a model''s prefix cache.';
comment on column token_savings.cleaned_tokens is 'Not sent: clean-up that loses nothing (estimated).';
comment on column token_savings.pruned_tokens is 'Not sent: context that the question does not need (estimated).';

do $$
begin
    if exists (select from pg_roles where rolname = 'promptyard_analyst') then
        grant select on token_savings to promptyard_analyst;
    end if;
end $$;
