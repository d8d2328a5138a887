-- A pair's probability is that of going to small times that of being drawn; both are needed to weigh it.
drop view shadow_pairs;

create view shadow_pairs as
select j.id as job_id, s.shadow_id, j.tenant, j.scorer, j.score, s.propensity, l.finished_at,
       trim(a.text, char(32, 9, 13, 10)) = trim(b.text, char(32, 9, 13, 10)) as agrees,
       l.prompt_tokens, l.completion_tokens,
       (julianday(l.finished_at) - julianday(l.started_at)) * 86400.0 as seconds,
       coalesce(j.propensity, 1.0) as decision_propensity
  from shadows s
  join jobs j on j.id = s.job_id
  join jobs l on l.id = s.shadow_id
  join answers a on a.job_id = s.job_id
  join answers b on b.job_id = s.shadow_id
 where j.state = 'succeeded' and l.state = 'succeeded';
