-- A worker leaves the registry, at once. ARGV: worker, models ...
run_when_full()
redis.call('ZREM', K.workers(), ARGV[1])
redis.call('DEL', K.worker(ARGV[1]))
for i = 2, #ARGV do redis.call('ZREM', K.serving(ARGV[i]), ARGV[1]) end
redis.call('PUBLISH', K.events(), 'workers')
return 1
