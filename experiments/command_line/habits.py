"""Names of options elsewhere: in other programs, and in earlier versions of this one."""

# Names in other programs -> the option here, with a value where the name implies one.
HABITS = {
    name: option
    for names, option in (
        ("epochs num_epochs n_epochs max_epoch", "trainer.max_epochs"),
        ("steps num_steps iters iterations max_iter max_iters", "trainer.max_steps"),
        ("learning_rate base_lr", "optimizer.lr"),
        ("wd", "weight_decay"),
        ("bs batch batchsize", "batch_size"),
        ("gpus num_gpus ngpus n_gpu nproc nproc_per_node world_size", "trainer.devices"),
        ("strategy ddp fsdp", "trainer.devices=2"),
        ("nodes nnodes", "trainer.num_nodes"),
        ("device", "trainer.accelerator"),
        ("cuda gpu", "trainer.accelerator=gpu"),
        ("amp fp16 half mixed_precision", "trainer.precision=16-mixed"),
        ("bf16", "trainer.precision=bf16-mixed"),
        ("grad_clip clip_grad clip max_norm", "trainer.gradient_clip_val"),
        ("grad_accum accumulation gradient_accumulation_steps", "trainer.accumulate_grad_batches"),
        ("workers worker", "num_workers"),
        ("model arch architecture network net encoder", "backbone"),
        ("loss criterion loss_fn", "margin"),
        ("interclass_filtering_threshold", "margin.max_negative_cosine"),
        ("t_alpha", "margin.t"),
        ("l_a", "margin.shortest"),
        ("u_a", "margin.longest"),
        ("l_margin", "margin.smallest"),
        ("u_margin", "margin.largest"),
        ("lambda_g", "margin.penalty_weight"),
        ("dataset datasets", "data"),
        ("data_dir data_path data_root dataset_path train_data", "data.source"),
        ("image_size img_size input_size", "data.size"),
        ("scheduler lr_scheduler", "schedule"),
        ("optim opt", "optimizer"),
        ("embedding_dim emb_size emb_dim feat_dim dim", "embedding_size"),
        ("random_seed", "seed"),
        ("output output_dir out out_dir save_dir work_dir log_dir", "hydra.run.dir"),
        ("ckpt ckpt_path resume_from resume_from_checkpoint checkpoint_path", "resume"),
        ("pretrained finetune load_from weights", "warm_start.checkpoint"),
        ("eval_interval val_interval val_check_interval", "evaluate.interval"),
        ("save_interval", "checkpoint.interval"),
        ("wandb use_wandb", "logger.wandb.mode=online"),
        ("tensorboard tb", "logger.tensorboard=true"),
        ("mlflow", "logger.mlflow"),
        ("trackio", "logger.trackio=true"),
    )
    for name in names.split()
}
# Explanations of names that other programs use for options, and that mean something else here.
REASONS = {
    "strategy": "the number of processes decides how they share the work",
    "num_classes": "the data decide how many classes there are",
    "checkpoint": "resume=RUN continues a training, and warm_start.checkpoint=RUN begins a new one from it",
}
# An option before version 0.3 -> its present name.
RENAMED = {
    "filter_below": "min_probability",
    "head.filter_below": "head.min_probability",
    "bench.filter_below": "bench.min_probability",
    "filter_above": "max_negative_cosine",
    "margin.filter_above": "margin.max_negative_cosine",
}
# An option before version 0.3 whose name is a group now -> its present name. Its values had a slash: val/rank1.
REUSED = {"objective": "sweep_metric"}
# An option that one choice had before version 0.3 -> the option that does the same for all choices.
MERGED = {"data.tail": "noise.tail"}
# A choice of a group before version 0.3 -> its present name.
RENAMED_CHOICES = {"bench=filter_below": "bench=min_probability"}
